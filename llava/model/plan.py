"""Finds out from its files what a checkpoint folder holds, and what it takes to load it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError
from llava.model.checkpoints.foreign import foreign_config, foreign_file, foreign_folder
from llava.model.language_model.registry import FAMILIES, family_of, is_llava

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

SMALLEST_NORM = 0.1  # mean size of a last norm's weights; that of a model is about 1, of a difference about 0


@dataclass(frozen=True)
class Contents:
    """What a folder holds. config: content of its `config.json`, {} if it has none.

    kind: "full" (a whole LLaVA), "projector" (stage 1: projector only), "lora", "text" (no LLaVA),
    "text_lora". recorded_base: the base model that its files name, None for kinds that need none.
    """

    kind: str
    config: dict[str, Any]
    recorded_base: str | None = None

    @property
    def needs_base(self) -> bool:
        """Whether the LLM's weights are in another folder."""
        return self.kind not in ("full", "text")


@dataclass(frozen=True)
class LoadPlan:
    """What a folder is and what it takes to load it, read from its files.

    kind: as in `Contents`. source: where the LLM's weights and the tokenizer are. config: content of
    `config.json` (of the base for text_lora).
    """

    kind: str
    path: str
    source: str
    config: dict[str, Any]

    @property
    def is_llava(self) -> bool:
        """Whether the model sees images."""
        return not self.kind.startswith("text")


def look_into(model_path: str) -> Contents:
    """Find out what `model_path`, a folder or hub name, holds. Raises CheckpointError when it is no model."""
    if os.path.isfile(model_path):  # of a path that is too long, pathlib raises
        raise CheckpointError(foreign_file(Path(model_path)))
    config = files.read_config(model_path) if files.has_file(model_path, files.CONFIG_FILE) else {}
    if config and (foreign := foreign_config(config, model_path)):
        raise CheckpointError(foreign)
    llava = is_llava(config)
    if llava:
        family_of(config, model_path)  # an unknown kind of LLaVA ends here
    names = files.WEIGHT_FILES + files.WEIGHT_INDEXES
    whole = next((name for name in names if files.has_file(model_path, name)), None) if config else None
    adapter_file = files.find_file(model_path, files.ADAPTER_CONFIG_FILE)
    if whole is not None and adapter_file is not None:  # transformers would put it on, merged or not
        raise CheckpointError(
            f"{model_path} holds a whole model ({whole}) and an adapter ({adapter_file.name}), and nothing "
            "tells whether the one is merged into the other; give the adapter a folder of its own, or "
            "remove it."
        )
    if whole is not None:
        return Contents("full" if llava else "text", config)
    if adapter_file is not None:
        if not config and files.has_file(model_path, files.NON_LORA_FILE):
            raise CheckpointError(
                f"{model_path} has {files.NON_LORA_FILE} but no {files.CONFIG_FILE}; copy it beside it: "
                "without it nobody knows which model the adapter is for."
            )
        base = files.read_json(adapter_file).get("base_model_name_or_path")
        return Contents("lora" if llava else "text_lora", config, base)
    if files.has_file(model_path, files.PROJECTOR_FILE):
        if not config:
            raise CheckpointError(
                f"{model_path} has {files.PROJECTOR_FILE} but no config.json; copy it beside it."
            )
        return Contents("projector", config, config.get("_name_or_path"))
    held = foreign_folder(Path(model_path)) if Path(model_path).is_dir() else None
    raise CheckpointError(
        f"{held or f'{model_path} holds no model'}; expected config.json with {names[0]} or {names[1]} (or "
        f"an index of shards), {files.ADAPTER_CONFIG_FILE}, or {files.PROJECTOR_FILE}."
    )


def make_plan(model_path: str, model_base: str | None = None) -> LoadPlan:
    """Plan the loading of `model_path`; `model_base` is the base model of adapters and projector-only
    folders.

    Raises CheckpointError when there is no model, or a base is needed and none is given.
    """
    found = look_into(model_path)
    if not found.needs_base:
        if model_base is not None and found.kind == "full":
            logger.warning("%s has all its weights; the base %s is not used", model_path, model_base)
        return LoadPlan(found.kind, model_path, model_path, found.config)
    base = model_base or _recorded_base(model_path, found.recorded_base)
    _check_base(model_path, base)
    if model_base is not None:
        _tell_of_other_base(model_path, model_base, found.recorded_base)
    if found.kind != "text_lora":
        return LoadPlan(found.kind, model_path, base, found.config)
    config = files.read_config(base)  # peft alone saves none with an adapter
    return LoadPlan("lora" if is_llava(config) else "text_lora", model_path, base, config)


def _check_base(path: str, base: str) -> None:
    """Raise CheckpointError for a base that needs a base itself, or is none of a model here."""
    names = (*files.WEIGHT_FILES, *files.WEIGHT_INDEXES, files.ADAPTER_CONFIG_FILE, files.PROJECTOR_FILE)
    if not any(files.has_file(base, name) for name in names):
        return  # told when it is loaded
    beneath = look_into(base)
    if beneath.needs_base:
        kind = "a projector" if beneath.kind == "projector" else "an adapter"
        remedy = "" if kind == "a projector" else "merge it first (scripts/merge_lora_weights.py), or "
        raise CheckpointError(
            f"{path} cannot be loaded: its base {base} is only {kind}, which needs a base itself; "
            f"{remedy}give a whole model."
        )


def _tell_of_other_base(path: str, base: str, recorded: str | None) -> None:
    """Warn where an adapter or projector is put on another model than it was trained on."""
    if isinstance(recorded, str) and recorded and files.name_of(recorded) != files.name_of(base):
        logger.warning(
            "%s was trained on %s, and is put on %s; unless that is the same model under another name, its "
            "weights do not fit",
            path,
            recorded,
            base,
        )


def _recorded_base(path: str, recorded: str | None) -> str:
    """The base that an adapter or projector folder names, if it is there."""
    remedy = "Give its base model as model_base (--model-base)."
    if not recorded:
        raise CheckpointError(f"{path} has no weights of a whole model and names no base. {remedy}")
    try:
        files.read_config(recorded)
    except CheckpointError as error:
        raise CheckpointError(f"{path} was trained on {recorded!r}, which is not here. {remedy}") from error
    logger.warning("no model_base given; using %s, which %s was trained on", recorded, path)
    return recorded


def delta_told(path: str) -> str:
    """Say of a folder that it looks like a difference of two models, and what helps."""
    return (
        f"{path} looks like a delta, the difference to a base model; add the base with: "
        f"python -m llava.model.apply_delta --base BASE --delta {path} --target NEW_FOLDER"
    )


def tell_of_delta(model: nn.Module, path: str) -> None:
    """Warn of a published difference of two models, which loads but answers nonsense."""
    names = {family.final_norm_weight for family in FAMILIES}
    for name, value in model.named_parameters():
        if name in names and not value.is_meta and value.numel():
            if float(value.detach().abs().float().mean()) < SMALLEST_NORM:
                logger.warning("%s", delta_told(path))
            return
