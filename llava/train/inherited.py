"""Settings that a command line does not name are those of the checkpoint that training starts from."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from llava.conversation import version_for
from llava.model.checkpoints.errors import CheckpointError
from llava.model.checkpoints.files import CONFIG_FILE, find_file, name_of, read_config, read_json
from llava.model.checkpoints.foreign import foreign_config
from llava.model.language_model.registry import is_llava
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.registry import split_name
from llava.utils import UserError

logger = logging.getLogger(__name__)

ModelArguments = TypeVar("ModelArguments")  # of llava.train.args, which stands on this module
DataArguments = TypeVar("DataArguments")

# flags that are named as the fields of a checkpoint's config.json
OF_THE_MODEL = (
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_vision_resolution",
    "mm_projector_type",
    "mm_patch_merge_type",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
)
# of these what a projector was trained with, beside which they stand in the config.json of stage 1
OF_THE_PROJECTOR = tuple(name for name in OF_THE_MODEL if name != "mm_patch_merge_type")
FEATURES = ("mm_vision_select_layer", "mm_vision_select_feature", "mm_vision_resolution")
OF_THE_DATA = ("image_aspect_ratio", "image_grid_pinpoints")


def given_flags(
    parser: argparse.ArgumentParser, argv: Sequence[str], classes: Iterable[type]
) -> frozenset[str]:
    """Return the names of the arguments that a command line names, of those of the dataclasses `classes`."""
    unset = object()
    names = [field.name for one in classes if is_dataclass(one) for field in fields(one)]
    # argparse writes defaults only where the namespace has nothing yet
    namespace, _ = parser.parse_known_args(list(argv), argparse.Namespace(**dict.fromkeys(names, unset)))
    return frozenset(name for name in names if getattr(namespace, name) is not unset)


def inherit_settings(
    model_args: ModelArguments, data_args: DataArguments, given: frozenset[str]
) -> tuple[ModelArguments, DataArguments]:
    """Return the arguments with what was not `given` taken from the LLaVA checkpoint that they start from.

    Arguments that start from a text model, or from nothing that can be read, come back as they are. Weights
    that training starts from were made with these settings, and what it writes must agree with them. Raises
    CheckpointError for settings of the checkpoint that are not known.
    """
    ours, of_data_args = vars(model_args), vars(data_args)
    if ours["vision_tower"] is None:
        return model_args, data_args
    path: str = ours["model_name_or_path"]
    try:
        config = read_config(path)
    except CheckpointError:  # told when the model is loaded
        return model_args, data_args
    if foreign := foreign_config(config, path):
        raise CheckpointError(f"--model_name_or_path: {foreign}")
    if not is_llava(config):
        return model_args, data_args
    try:
        MultimodalConfig.checked(config)
    except UserError as error:
        raise CheckpointError(f"{path}/{CONFIG_FILE}: {error}") from error
    _tell_of_other_tower(path, config, ours["vision_tower"])
    of_model = _changes(config, OF_THE_MODEL, ours, given)
    of_data = _changes(config, OF_THE_DATA, of_data_args, given)
    if "image_grid_pinpoints" in of_data:
        of_data["image_grid_pinpoints"] = str(of_data["image_grid_pinpoints"])
    if "version" not in given and config.get("conv_template"):
        of_model["version"] = config["conv_template"]
    if changed := {**of_model, **of_data}:
        told = ", ".join(f"{name} {value}" for name, value in changed.items())
        logger.info("taken from %s, since no flag says otherwise: %s", path, told)
    return _replaced(model_args, of_model), _replaced(data_args, of_data)


def inherit_from_projector(model_args: ModelArguments, given: frozenset[str]) -> ModelArguments:
    """Return the arguments with what was not `given` taken from the folder of --pretrain_mm_mlp_adapter.

    A projector reads the features that it was trained on: where the command line, or a LLaVA checkpoint that
    training starts from, chooses others, a warning says so. A file without a readable config.json of a LLaVA
    beside it changes nothing.
    """
    ours = vars(model_args)
    file: str | None = ours["pretrain_mm_mlp_adapter"]
    if not file or ours["vision_tower"] is None:
        return model_args
    path: str = ours["model_name_or_path"]
    try:
        config = read_json(Path(file).parent / CONFIG_FILE)
        MultimodalConfig.checked(config)
        continues = is_llava(read_config(path))
    except (CheckpointError, UserError):
        return model_args
    if not is_llava(config):
        return model_args
    changes = {} if continues else _changes(config, OF_THE_PROJECTOR, ours, given)
    if changes:
        told = ", ".join(f"{name} {value}" for name, value in changes.items())
        logger.info("taken from the stage 1 of %s, since no flag says otherwise: %s", file, told)
    _tell_of_other_tower(file, config, ours["vision_tower"])
    for name in FEATURES:
        value = changes.get(name, ours[name])
        if config.get(name) is not None and config[name] != value:
            logger.warning("%s was trained with --%s %s, this run has %s", file, name, config[name], value)
    return _replaced(model_args, changes)


def _tell_of_other_tower(path: str, config: Mapping[str, Any], wanted: str) -> None:
    """Warn where the projector of a file or checkpoint has learned to read another tower than the wanted."""
    own = config.get("mm_vision_tower")
    if isinstance(own, str) and own and _tower_names(own) != _tower_names(wanted):
        logger.warning(
            "the projector of %s was trained on the features of the tower %s, this run has --vision_tower "
            "%s; unless that is the same tower under another name, its features mean something else",
            path,
            own,
            wanted,
        )


def _tower_names(tower: str) -> list[str]:
    """Return what tells towers apart wherever they lie: the names of their folders or repositories."""
    return [name_of(one) for one in split_name(tower) or [tower]]


def choose_version(model_args: ModelArguments, given: frozenset[str]) -> ModelArguments:
    """Return the arguments with the template of the LLM's family, where no --version was given.

    The reference's families keep its default, as does what cannot be read.
    """
    ours = vars(model_args)
    path: str = ours["model_name_or_path"]
    try:
        config = read_config(path)
        if "version" in given or (is_llava(config) and config.get("conv_template")):
            return model_args
        own = find_file(path, "chat_template.jinja") is not None
        settings = None if own else find_file(path, "tokenizer_config.json")
        own = own or (settings is not None and bool(read_json(settings).get("chat_template")))
    except CheckpointError:  # told when the model is loaded
        return model_args
    chosen = version_for(path, config, has_chat_template=own)
    if chosen is None:
        return model_args
    logger.info("--version %s is taken: %s", *chosen)
    return _replaced(model_args, {"version": chosen[0]})


def _changes(
    config: Mapping[str, Any], names: Sequence[str], current: Mapping[str, Any], given: frozenset[str]
) -> dict[str, Any]:
    """Return the checkpoint's values of arguments that were not given and have another value now."""
    return {
        name: config[name]
        for name in names
        if name not in given and config.get(name) is not None and config[name] != current[name]
    }


def _replaced(arguments: Any, changes: Mapping[str, Any]) -> Any:
    return replace(arguments, **changes)
