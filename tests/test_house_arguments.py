"""A rule of the house: settings do not travel on argument objects, and nobody guesses at their fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "llava").rglob("*.py"))

_ARGUMENTS = re.compile(r"^(?:\w+\.)*(?:args|arguments|training_args|model_args|data_args)$")
# who makes the argument objects, and the one place that reads those of other projects
_MAKES_ARGUMENTS = {"llava/train/args.py"}
_LENDS_ARGUMENTS = {
    # transformers' own saving asks its arguments where, and whether, to rotate and upload
    "llava/train/checkpointing/saving.py": {"save_total_limit", "push_to_hub"},
    # eval_model takes plain objects of other projects, which need few fields
    "llava/eval/run/question.py": {"name"},
    "llava/eval/run_llava.py": {"sep"},
    # the program's own command line: the variable of a key becomes the key
    "llava/serve/gradio_web_server.py": {"api_key"},
    "llava/serve/openai_api.py": {"api_key"},
}


def _settings_on_arguments(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield (line, what is done, name) for attributes of argument objects that are guessed at or set."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) >= 2:
            guessed = node.func.id == "getattr" and len(node.args) == 3
            if (guessed or node.func.id == "setattr") and _ARGUMENTS.match(ast.unparse(node.args[0])):
                yield node.lineno, node.func.id, ast.unparse(node.args[1]).strip("'")
        stored = isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)
        if stored and _ARGUMENTS.match(ast.unparse(node.value)):
            yield node.lineno, "assignment", node.attr


def test_no_settings_travel_on_argument_objects() -> None:
    faults = [
        f"{path}:{line}: {what} of {name}; put it into RunPlan or DataSettings (llava/train/plan.py)"
        for path in FILES
        if path not in _MAKES_ARGUMENTS
        for line, what, name in _settings_on_arguments(ast.parse((ROOT / path).read_text()))
        if name not in _LENDS_ARGUMENTS.get(path, ())
    ]
    assert len(FILES) > 200
    assert not faults


@pytest.mark.parametrize(
    "statement",
    [
        "training_args.tune_mm_mlp_adapter = True",
        "config.x = data_args.mm_use_im_start_end = False",
        "trainer.args.save_steps, other = 1, 2",
        'getattr(self.args, "packing", False)',
        'getattr(data_args, f"{kind}_path", None)',
        'setattr(model_args, "version", "v1")',
    ],
)
def test_a_setting_on_an_argument_object_would_be_found(statement: str) -> None:
    assert list(_settings_on_arguments(ast.parse(statement)))
