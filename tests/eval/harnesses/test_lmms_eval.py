"""The model for lmms-eval: found by its entry point, built on demand, answers and losses as one by one."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from warming import python

from llava.constants import IGNORE_INDEX
from llava.inference.chat import ChatSession
from llava.utils import UserError

ROOT = Path(__file__).parents[3]
GROUP = "lmms_eval.models"
pytestmark = pytest.mark.usefixtures("harness")


@dataclass(frozen=True)
class ModelManifest:
    """The payload that lmms-eval's registry takes."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Lmms:
    """lmms-eval's base class, as far as its evaluator uses it."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.kept: list[Any] = []
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *given: self.kept.append(given))
        assert self.pretrained  # type: ignore[attr-defined]  # names the cache


@dataclass
class Instance:
    args: tuple[Any, ...]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Doubles of the modules that are imported, and a module of ours that was not imported before."""
    for name, contents in {
        "lmms_eval": {},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "llava.eval.harnesses.lmms_eval", raising=False)
    yield
    sys.modules.pop("llava.eval.harnesses.lmms_eval", None)


def entry_points() -> dict[str, str]:
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition(f'[project.entry-points."{GROUP}"]\n')[2].partition("\n\n")[0]
    return dict(re.findall(r'^(\w+) = "([\w.:]+)"', section, re.MULTILINE))


def get_model(name: str) -> type:
    """Find a model as lmms-eval's registry does: entry points, their payload, the class by its path."""
    for entry, value in entry_points().items():
        payload = EntryPoint(entry, value, GROUP).load()
        payload = payload() if callable(payload) else payload
        assert isinstance(payload, ModelManifest)
        if name in (payload.model_id, *payload.aliases):
            assert payload.simple_class_path
            module, attribute = payload.simple_class_path.rsplit(".", 1)
            found = getattr(__import__(module, fromlist=[attribute]), attribute)
            assert isinstance(found, type) and issubclass(found, Lmms) and found.is_simple
            return found
    raise ValueError(name)


def test_the_entry_point_gives_a_class_of_the_harness() -> None:
    found = get_model("llava_batched")
    assert found.__name__ == "LlavaBatched" and found is get_model("llava_batched")


def test_nothing_of_the_harness_is_imported_before() -> None:
    code = (
        "import sys, llava.eval.harnesses.lmms_eval; "
        "print([one for one in sys.modules if 'lmms_eval' in one])"
    )
    done = subprocess.run([python(), "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "['llava.eval.harnesses.lmms_eval']", done.stderr


@pytest.fixture
def model(checkpoints: Path) -> Any:
    made = get_model("llava_batched")(
        pretrained=str(checkpoints / "llava-tiny-v1.5"),
        device="cpu",
        dtype="float32",
        batch_size="3",
        max_batch_size=None,
    )
    red, blue = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (30, 50), "blue")
    rows = [{"images": [red]}, {"images": [red, blue]}, {"images": []}, {"images": [[blue], None]}]
    made.task_dict = {"task": {"test": rows}}
    return made


def ask(row: int, text: str, **settings: Any) -> Instance:
    return Instance((text, {"max_new_tokens": 6, **settings}, lambda doc: doc["images"], row, "task", "test"))


def test_batched_answers_are_those_of_one_by_one(model: Any) -> None:
    requests = [ask(0, "What is it?"), ask(1, "Compare."), ask(2, "Hello"), ask(3, "Why?", max_new_tokens=3)]
    answers = model.generate_until(requests)
    for request, answer in zip(requests, answers, strict=True):
        text, settings, _, row, _, _ = request.args
        images = model.images(lambda doc: doc["images"], row, "task", "test")
        assert len(images) == (1, 2, 0, 1)[row]
        session = ChatSession(model.loaded, template="llava_v1")
        assert answer == session.ask(text, images, temperature=0, max_new_tokens=settings["max_new_tokens"])
    assert [one[0] for one in model.kept] == ["generate_until"] * 4


def test_until_ends_an_answer(model: Any) -> None:
    (whole,) = model.generate_until([ask(2, "Hello", max_new_tokens=12)])
    stop = whole[2:4]
    (cut,) = model.generate_until([ask(2, "Hello", max_new_tokens=12, until=[stop, "\n\n"])])
    assert stop and stop not in cut and whole.startswith(cut)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_the_loss_is_that_of_the_answers_tokens(model: Any, row: int) -> None:
    request = Instance(("What?", "red bus", lambda doc: doc["images"], row, "task", "test"))
    by_function = Instance(("What?", lambda doc: "red bus", *request.args[2:]))
    ((loss, greedy), other) = model.loglikelihood([request, by_function])
    assert (loss, greedy) == other and not greedy
    # again, from the logits of the whole prompt
    captured: dict[str, Any] = {}
    forward = model.loaded.model.forward

    def keep(**given: Any) -> Any:
        out = forward(**given)
        captured.update(labels=given["labels"], logits=out["logits"])
        return out

    model.loaded.model.forward = keep
    model.loglikelihood([request])
    model.loaded.model.forward = forward
    answer = captured["labels"][captured["labels"] != IGNORE_INDEX]
    logits = captured["logits"][0, -len(answer) - 1 : -1]
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, answer)), rel=1e-5)


def test_what_greedy_decoding_says_is_called_greedy(model: Any) -> None:
    (said,) = model.generate_until([ask(0, "What?", max_new_tokens=1)])
    losses = model.loglikelihood(
        [
            Instance(("What?", one, lambda doc: doc["images"], 0, "task", "test"))
            for one in (said, "zebra zebra")
        ]
    )
    assert losses[0][0] < losses[1][0]


def test_arguments_that_cannot_be_used(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = get_model("llava_batched"), str(checkpoints / "llava-tiny-v1.5")
    with pytest.raises(UserError, match="names truncation, which llava_batched does not have"):
        made(pretrained=folder, truncation=True)
    with pytest.raises(UserError, match="--batch_size is 'auto'"):
        made(pretrained=folder, batch_size="auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process, while WORLD_SIZE"):
        made(pretrained=folder)


@pytest.mark.parametrize("kind", ["answer", "loss"])
def test_an_image_for_a_model_without_tower_is_refused(model: Any, kind: str) -> None:
    model.loaded = model.loaded._replace(image_processor=None)
    with pytest.raises(UserError, match="no vision tower"):
        if kind == "answer":
            model.generate_until([ask(0, "What is it?")])
        else:
            model.loglikelihood([Instance(("What?", "red", lambda doc: doc["images"], 0, "task", "test"))])
    assert model.generate_until([ask(2, "Hello")])[0]


def test_tasks_of_several_rounds_are_refused(model: Any) -> None:
    with pytest.raises(UserError, match="one round only"):
        model.generate_until_multi_round([])
