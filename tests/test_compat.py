"""Looks up every private name of a dependency that llava uses, in the versions that are installed."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import accelerate.hooks
import accelerate.utils.other
import pytest
import torch
import transformers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.tokenization_python import Trie
from transformers.utils import cached_file

import llava
from llava import _compat

FOLDER = Path(__file__).parent / "data" / "checkpoints" / "llava-tiny-mpt"
TINY = LlamaConfig(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=16,
    attn_implementation="eager",
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(TINY)


# ---- torch ----


@pytest.mark.parametrize("name", _compat.__all__)
def test_classes_of_torch_are_there(name: str) -> None:
    assert inspect.isclass(getattr(_compat, name))


def test_an_unknown_name_is_no_class_of_torch() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _compat.no_such_name  # noqa: B018


def test_a_storage_has_one_key_for_all_its_views_also_without_values() -> None:
    with _compat.FakeTensorMode():
        tensor, other = torch.empty(4, 4), torch.empty(4, 4)
    assert _compat.storage_key(tensor) == _compat.storage_key(tensor[1]) != _compat.storage_key(other)


def test_a_version_counts_what_is_written() -> None:
    tensor = torch.zeros(3)
    before = _compat.version_of(tensor)
    tensor.add_(1)
    assert _compat.version_of(tensor) > before
    with torch.inference_mode():
        assert _compat.version_of(torch.zeros(3)) == 0


def test_the_tables_of_a_module_are_what_it_computes_with() -> None:
    layer = nn.BatchNorm1d(2)
    weights, buffers = _compat.tables_of(layer)
    assert set(weights) == {"weight", "bias"} and "running_mean" in buffers
    weights["weight"] = None
    assert layer.weight is None


def test_rates_that_are_set_are_those_that_logs_show() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    _compat.set_last_rates(scheduler, [0.25])
    assert scheduler.get_last_lr() == [0.25]


# ---- transformers ----


def test_attention_is_read_and_set(model: LlamaForCausalLM) -> None:
    config = LlamaConfig(attn_implementation="eager")
    assert _compat.attention_of(config) == "eager"
    _compat.set_attention(config, "sdpa")
    assert _compat.attention_of(config) == "sdpa"


def test_a_class_tells_which_attention_it_has() -> None:
    assert _compat.supported_attention(LlamaForCausalLM) == ("sdpa", "flash_attention", "flex_attention")
    assert _compat.supported_attention(MptForCausalLM) == ()

    class WithoutSdpa(LlamaForCausalLM):
        _supports_sdpa = False

    assert _compat.supported_attention(WithoutSdpa) == ("flash_attention", "flex_attention")


def test_a_model_tells_whether_it_compiles(model: LlamaForCausalLM) -> None:
    assert _compat.can_compile_fullgraph(model) is True
    assert MptForCausalLM._can_compile_fullgraph is False


def test_the_classes_that_stay_whole_are_read_and_set(model: LlamaForCausalLM) -> None:
    before = _compat.no_split_modules(model)
    assert before == ["LlamaDecoderLayer"]
    _compat.set_no_split_modules(model, [])
    assert _compat.no_split_modules(model) == [] and model._no_split_modules == []
    _compat.set_no_split_modules(model, before)


def test_configs_are_made_when_they_are_asked_for() -> None:
    mapping = type(CONFIG_MAPPING)({})
    mapping.register("known", LlamaConfig)
    _compat.make_configs_on_demand(mapping, {"made": MptConfig}.get)
    assert mapping["known"] is LlamaConfig and mapping["made"] is MptConfig
    assert "made" in mapping and "other" not in mapping
    with pytest.raises(KeyError, match="other"):
        mapping["other"]
    mapping.register("later", LlamaConfig)
    assert mapping["later"] is LlamaConfig


def test_an_optional_file_of_a_folder_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("{}")
    assert _compat.cached_hub_file(str(tmp_path), "there.json") == str(tmp_path / "there.json")
    assert _compat.cached_hub_file(str(tmp_path), "missing.json") is None
    with pytest.raises(OSError):  # without the private argument
        cached_file(str(tmp_path), "missing.json")


def test_added_tokens_and_the_trie_are_those_of_a_tokenizer(tokenizer_with_added_token: object) -> None:
    assert _compat.added_tokens(tokenizer_with_added_token)["<added>"] >= 0


@pytest.fixture
def tokenizer_with_added_token() -> object:
    class Letters(transformers.PreTrainedTokenizer):
        vocab_size = 26

        def get_vocab(self) -> dict[str, int]:
            return {chr(97 + i): i for i in range(26)}

        def _convert_token_to_id(self, token: str) -> int:
            return self.get_vocab().get(token, 0)

        def _convert_id_to_token(self, index: int) -> str:
            return chr(97 + index)

    tokenizer = Letters()
    tokenizer.add_tokens(["<added>"])
    return tokenizer


def test_a_trie_gives_its_tokens() -> None:
    assert _compat.trie_tokens(Trie(["<image>", "</s>"])) == {"<image>", "</s>"}


def test_the_trainer_has_what_resuming_needs(model: LlamaForCausalLM, tmp_path: Path) -> None:
    rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)} for _ in range(4)]
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, max_steps=2, per_device_train_batch_size=2, report_to=[]
    )
    seen = []

    class Noting(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            seen.append(_compat.unlogged_loss(trainer))
            if state.global_step == 1:
                _compat.set_unlogged_loss(trainer, 100.0, 0)

    trainer = Trainer(model, args, train_dataset=rows, callbacks=[Noting()])
    assert _compat.train_batch_size(trainer) == 2
    ids = _compat.prepared_inputs(trainer, rows[0])["input_ids"]
    assert ids.device == args.device
    trainer.train()
    assert 0 < seen[0][0] < 50 and seen[1][0] > 100 and [step for _, step in seen] == [0, 0]


# ---- accelerate ----


def test_a_hook_of_accelerate_is_seen() -> None:
    layer = nn.Linear(2, 2)
    assert _compat.hook_of(layer) is None
    accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.AlignDevicesHook(execution_device="cpu"))
    hook = _compat.hook_of(layer)
    assert hook is not None and str(hook.execution_device) == "cpu"


# ---- Python ----


def test_a_parser_lists_its_arguments() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flag")
    assert ["--flag"] in [action.option_strings for action in _compat.parser_actions(parser)]


def test_a_semaphore_has_a_value() -> None:
    assert _compat.semaphore_value(asyncio.Semaphore(3)) == 3


# ---- overrides: what a dependency calls or reads of our classes ----


def _class(name: str) -> type:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in _compat.OVERRIDDEN.items() for name in names]
)
def test_what_is_overridden_is_still_called_by_that_name(owner: str, name: str) -> None:
    base = _class(owner)
    assert hasattr(base, name)
    sources = [inspect.getsource(inspect.getmodule(one) or one) for one in base.__mro__[:-1]]
    uses = sum(source.count(f".{name}") + source.count(f'"{name}"') for source in sources)
    assert uses, f"nothing in transformers reads {owner}.{name} any more"


@cache
def _classes_of_llava() -> list[type]:
    skipped = ("llava.train.train_", "__main__", "llava.serve", "llava.train.llama_")
    for module in pkgutil.walk_packages(llava.__path__, "llava."):
        if not any(part in module.name for part in skipped):
            importlib.import_module(module.name)
    found: set[type] = set()
    open_ones: list[type] = [object]
    while open_ones:
        for one in type.__subclasses__(open_ones.pop()):
            if one not in found:
                found.add(one)
                open_ones.append(one)
    return [one for one in found if str(one.__module__).startswith("llava.")]


def _is_foreign(base: type) -> bool:
    top = str(base.__module__).partition(".")[0]
    return top != "llava" and top not in sys.stdlib_module_names


def _overrides() -> Iterator[tuple[str, str, str]]:
    """Yield class, base and name of every private definition that one of a dependency stands behind."""
    for own in _classes_of_llava():
        foreign = [base for base in own.__mro__[1:] if _is_foreign(base)]
        for name in vars(own):
            if not name.startswith("_") or name.startswith("__"):
                continue
            for home in [base for base in foreign if name in vars(base)][:1]:
                yield own.__qualname__, f"{home.__module__}.{home.__qualname__}", name


def test_every_override_of_a_private_name_is_listed() -> None:
    listed = {name for names in _compat.OVERRIDDEN.values() for name in names}
    found = set(_overrides())
    assert ("LLaVATrainer", "transformers.trainer.Trainer", "_save_checkpoint") in found
    # set on llava's classes by metaclasses, and by transformers, which keeps a result there
    set_by_others = {"_abc_impl", "_backward_cls", "_can_set_experts_implementation_cached_value"}
    faults = [one for one in sorted(found) if one[2] not in listed | set_by_others]
    assert not faults, "list these in _compat.OVERRIDDEN"


# ---- accelerate ----


@pytest.mark.slow
def test_saving_imports_no_deepspeed(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    code = (
        "import sys; from llava.model.builder import load_pretrained_model\n"
        "from accelerate.utils import other\n"
        "before = other.is_deepspeed_available\n"
        f"model = load_pretrained_model({str(FOLDER)!r}, None, 'llava-tiny-mpt', device='cpu')[1]\n"
        f"model.save_pretrained({str(tmp_path)!r})\n"
        "assert 'deepspeed' not in sys.modules and other.is_deepspeed_available is before and before()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent)


def test_engines_of_deepspeed_are_found_where_it_is_imported() -> None:
    pytest.importorskip("deepspeed")
    with _compat.engines_of_deepspeed_if_imported():
        assert accelerate.utils.other.is_deepspeed_available()
