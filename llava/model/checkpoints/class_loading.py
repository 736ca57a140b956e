"""What the LLaVA classes add to transformers' `from_pretrained`, also when an Auto class calls it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from llava.model.checkpoints import files
from llava.model.checkpoints.faults import find_faults
from llava.model.checkpoints.quantization import keywords_as_config, settle_layers, sparing_parts
from llava.protocols import LlavaModel

_REPORTER = logging.getLogger("transformers.modeling_utils")


@contextlib.contextmanager
def loading_report_held() -> Iterator[list[logging.LogRecord]]:
    """Hold back transformers' table of missing and unexpected keys; yields the list that it is put into."""
    held: list[logging.LogRecord] = []

    def is_other(record: logging.LogRecord) -> bool:
        if "LOAD REPORT" not in str(record.msg):
            return True
        held.append(record)
        return False

    _REPORTER.addFilter(is_other)
    try:
        yield held
    finally:
        _REPORTER.removeFilter(is_other)


@contextlib.contextmanager
def progress_held() -> Iterator[None]:
    """Hold back transformers' bar of weights that are loaded."""
    from transformers.utils import logging as reports

    shown = reports.is_progress_bar_enabled()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            reports.enable_progress_bar()


def load_class(
    load: Callable[..., Any],
    body: str,
    path: str | os.PathLike[str] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call `load` (the `from_pretrained` of transformers) for a LLaVA class whose LLM without head is `body`.

    Quantising spares tower, projector and head, whoever asks for it: the caller's quantization_config, or
    `load_in_8bit` and `load_in_4bit` as transformers 4 had them. transformers' table of keys is shown only
    where a key is not accounted for: a copy of a tower that is read from its own files is.
    """
    with_info = kwargs.pop("output_loading_info", False)
    asked = keywords_as_config(kwargs)
    if asked is not None:
        kwargs["quantization_config"] = sparing_parts(asked, body)
    held: list[logging.LogRecord] = []
    shown = True  # if it raises, its message may speak of the table
    try:
        with loading_report_held() as held:
            model, info = load(path, *args, output_loading_info=True, **kwargs)
        _omit_unneeded(model, info)
        _defer_layers(model, info, path)
        shown = _has_faults(model, info)
    finally:
        for record in held if shown else ():
            _REPORTER.handle(record)
    settle_layers(model)
    return (model, info) if with_info else model


def _omit_unneeded(model: LlavaModel, info: dict[str, Any]) -> None:
    """Remove parts of a stored tower that are not stored and that no feature needs, as a last layer."""
    tower = model.get_vision_tower()
    missing = {name for name in info["missing_keys"] if files.is_tower_key(name)}
    weights = {name for name in missing if not files.is_recomputed(name)}
    if tower is None or not tower.is_loaded or not weights:
        return
    if len(weights) < sum(1 for _ in tower.vision_tower.parameters()) and tower.omit_unneeded(
        name.partition("vision_tower.")[2] for name in weights
    ):
        info["missing_keys"] = type(info["missing_keys"])(set(info["missing_keys"]) - missing)


def _defer_layers(model: LlavaModel, info: dict[str, Any], path: str | os.PathLike[str] | None) -> None:
    """Let layers of a stored tower that were left out be read from the checkpoint when they are asked for."""
    tower = model.get_vision_tower()
    if tower is None or not tower.is_loaded or path is None:
        return
    deferred = tower.defer_stored(str(path), filter(files.is_tower_key, info["unexpected_keys"]))
    info["unexpected_keys"] = type(info["unexpected_keys"])(set(info["unexpected_keys"]) - set(deferred))


def _has_faults(model: LlavaModel, info: dict[str, Any]) -> bool:
    """Tell whether weights would be random or are left over; nothing is filled in after an Auto class."""
    tower = model.get_vision_tower()
    built = tower is not None and tower.is_loaded
    faults = find_faults(info, tower_is_built=built, projector_later=False)
    random_tower = any(
        files.is_tower_key(name) and not files.is_recomputed(name) for name in info["missing_keys"]
    )
    return random_tower or bool(faults.missing or faults.unexpected or faults.shapes)
