"""Writes a llava-hf folder of transformers as a LLaVA checkpoint under the reference's names."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from llava.atomic import write_text
from llava.conversation import version_for
from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError
from llava.model.conversion import parity as proof
from llava.model.conversion import template, weights
from llava.model.conversion.config import FLAT, check_hf, first_media_token, llava_fields, vision_config
from llava.model.conversion.keys import TOWER_PREFIX, VISION_LEVEL, VOCABULARY_WEIGHTS, from_hf_name
from llava.model.conversion.template import image_processor_name
from llava.model.conversion.to_hf import (
    REPORT_FILE,
    SOURCE_FILE,
    check_target,
    expected_shapes,
    load_rounded,
    template_of,
    write_json,
)
from llava.model.conversion.tokenizer import from_hf_tokenizer
from llava.model.language_model.factory import OTHER_NAMES
from llava.model.language_model.registry import family_of, llava_config
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.registry import TOWERS, describe_tower
from llava.utils import UserError

logger = logging.getLogger(__name__)

TOWER_FOLDER = "vision_tower"
TOWER_PART = "mm_vision_tower"  # in mm_tunable_parts
PROCESSOR_FILE = "preprocessor_config.json"


def from_hf(
    source: str,
    target: str | Path,
    *,
    vision_tower: str | None = None,
    aspect: str | None = None,
    conv_mode: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    parity: proof.Settings | None = proof.FULL,
) -> proof.Report | None:
    """Convert a folder of one of transformers' LLaVAs (conversion.config.ARCHITECTURES) to LLaVA's layout.

    vision_tower: what config.mm_vision_tower shall say; the tower's weights are then in the checkpoint,
    unless they are those of that tower. None writes the tower to the folder `vision_tower` in `target`.
    aspect: image_aspect_ratio, None for what the source's processor does. The rest is as in `to_hf`.
    """
    check_target(source, target)
    config = files.read_config(source)
    kind = check_hf(config, source)
    own_aspect = template.image_aspect_ratio(_processor_fields(source))
    if aspect is None and kind == FLAT and own_aspect == "square":
        logger.warning(
            "the processor of %s cuts images to a square, and so will LLaVA; LLaVA-1.5 was trained with "
            "padded "
            "images: --image-aspect-ratio pad",
            source,
        )
    place = Path(target).absolute() / TOWER_FOLDER
    fields = llava_fields(config, path=source, tower=vision_tower or str(place), aspect=aspect or own_aspect)
    fields = _with_recorded(source, fields, keep_aspect=aspect is not None)
    fields["mm_vision_select_layer"] = _counted_from_the_end(
        fields["mm_vision_select_layer"], config, vision_tower
    )
    if kind != FLAT and (spoken := _template_of_next(source, fields)):
        fields.setdefault("conv_template", spoken)  # which no file of such a folder names
    conversation = template_of(conv_mode, source, fields)
    if conv_mode:
        fields["conv_template"] = conv_mode
    size = weights.stored_bytes(source)
    with weights.new_folder(Path(target), overwrite=overwrite, needs_bytes=size) as folder:
        _write(source, config, fields, folder, vision_tower, dtype=dtype, max_bytes=max_shard_bytes)
        if parity is None:
            return None
        moved = None if vision_tower else {"mm_vision_tower": str(folder / TOWER_FOLDER)}
        report = proof.compare(
            lambda: load_rounded(str(folder), None, None, parity, exact_tower=True, overwrite=moved),
            source,
            conversation,
            settings=parity,
            own_template=False,
            square=aspect is not None and aspect != own_aspect,
        )
        if not report.passed:
            raise proof.ParityError(report)
        write_text(folder / REPORT_FILE, json.dumps(report.content(), indent=2) + "\n")
    return report


def _processor_fields(path: str) -> dict[str, Any]:
    """Read the settings of the image processor, which transformers 5 keeps in the processor's file."""
    for name in (PROCESSOR_FILE, "processor_config.json"):
        file = files.find_file(path, name)
        content = files.read_json(file) if file else {}
        content = content.get("image_processor", content)
        if "image_mean" in content or "image_processor_type" in content:
            return content
    raise CheckpointError(f"{path} has no {PROCESSOR_FILE}, which says how images become pixel values.")


def _with_recorded(path: str, fields: dict[str, Any], *, keep_aspect: bool) -> dict[str, Any]:
    """Take what transformers' config does not hold from the LLaVA that a folder was made from by `to_hf`."""
    file = files.find_file(path, SOURCE_FILE)
    if file is None:
        return fields
    recorded = files.read_json(file)
    multimodal = ("mm_", "image_", "tokenizer_", "unfreeze_mm", "tune_mm", "freeze_mm", "pad_token_id")
    changed = {"mm_vision_tower", "mm_hidden_size", "mm_vision_select_layer"} | (
        {"image_aspect_ratio"} if keep_aspect else set()
    )
    wins = [name for name in recorded if name.startswith(multimodal) and name not in changed]
    return {**recorded, **fields, **{name: recorded[name] for name in wins}}


def _template_of_next(path: str, fields: dict[str, Any]) -> str | None:
    """Return the template that LLaVA-NeXT's code has for a LLaVA on this LLM, if it names such ones."""
    base_type = family_of(fields).base_type
    names = [name for name, llm in OTHER_NAMES.items() if llm == base_type]
    found = [version_for(path, {"model_type": name}, has_chat_template=False) for name in names]
    return next((key for key, _ in filter(None, found)), None)


def _counted_from_the_end(layer: int, config: dict[str, Any], vision_tower: str | None) -> int:
    """Return the selected layer counted from the end of the tower that is named, which may have more."""
    if layer >= 0 or vision_tower is None:
        return layer
    try:
        named = describe_tower(MultimodalConfig.of(SimpleNamespace(mm_vision_tower=vision_tower))).num_layers
    except UserError:  # not here
        return layer
    return layer - max(0, named - vision_config(config).num_hidden_layers)


def _write(
    source: str,
    config: dict[str, Any],
    fields: dict[str, Any],
    folder: Path,
    vision_tower: str | None,
    *,
    dtype: torch.dtype | None,
    max_bytes: int,
) -> None:
    """Write all files of the folder."""
    tokenizer = from_hf_tokenizer(source, folder, first_media_token(config))
    rows = len(tokenizer)
    own_tower = _write_tower(source, config, folder / TOWER_FOLDER, dtype)
    parts = str(fields.get("mm_tunable_parts") or "").split(",")
    tuned = bool(fields["unfreeze_mm_vision_tower"]) or TOWER_PART in parts
    in_checkpoint = vision_tower is not None and (tuned or not _is_tower(own_tower, vision_tower))
    stored_dtype = weights.dtype_name(dtype or weights.first_dtype(source))
    fields = {
        **fields,
        "vocab_size": rows,
        "unfreeze_mm_vision_tower": in_checkpoint,
        "dtype": stored_dtype,
        "torch_dtype": stored_dtype,
    }
    if TOWER_PART in parts and not in_checkpoint:  # the field says where the weights are
        fields["mm_tunable_parts"] = ",".join(part for part in parts if part != TOWER_PART)
    if fields.get("pad_token_id") is None:
        fields["pad_token_id"] = tokenizer.pad_token_id
    content = llava_config(fields).to_diff_dict()
    write_json(folder / files.CONFIG_FILE, content)
    generation = files.find_file(source, "generation_config.json")
    if generation:
        values = {**files.read_json(generation), "pad_token_id": content["pad_token_id"]}
        write_json(folder / "generation_config.json", values)

    named = _named(source, lambda name: in_checkpoint or not files.is_tower_key(name))
    found = weights.write_weights(
        weights.with_rows(named, keep=rows, total=rows), folder, dtype=dtype, max_bytes=max_bytes
    )
    if vision_tower is not None:
        shutil.rmtree(folder / TOWER_FOLDER)
    expected = {
        name: (rows, *shape[1:]) if name in VOCABULARY_WEIGHTS else shape
        for name, shape in expected_shapes(config).items()
        if in_checkpoint or not files.is_tower_key(name)
    }
    weights.check_shapes(found, expected, source, tied=bool(content.get("tie_word_embeddings")))


def _named(source: str, wanted: Callable[[str], bool]) -> weights.Named:
    """Yield the weights of a llava-hf folder under LLaVA's names; `wanted` tells by the stored name."""
    for name, value in weights.stored(source, lambda one: wanted(one) and not files.is_recomputed(one)):
        try:
            yield from_hf_name(name), value
        except KeyError as error:
            raise CheckpointError(f"{source} has a weight {name}, which LLaVA has no place for.") from error


def _write_tower(source: str, config: dict[str, Any], folder: Path, dtype: torch.dtype | None) -> Path:
    """Write the vision tower as a folder of its own, with its image processor."""
    folder.mkdir()
    vision = vision_config(config)
    tower_class = TOWERS[vision.model_type]
    content = vision.to_diff_dict()
    content.update(architectures=[tower_class.model_class.__name__], model_type=vision.model_type)
    write_json(folder / files.CONFIG_FILE, content)
    fields = _processor_fields(source)
    names = ("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_rescale", "rescale_factor",
             "do_normalize", "image_mean", "image_std", "do_convert_rgb")  # fmt: skip
    kept = {name: fields[name] for name in names if fields.get(name) is not None}
    write_json(folder / PROCESSOR_FILE, {**kept, "image_processor_type": image_processor_name(tower_class)})
    tower = (
        (VISION_LEVEL + name.removeprefix(TOWER_PREFIX), value)
        for name, value in _named(source, files.is_tower_key)
    )
    weights.write_weights(tower, folder, dtype=dtype, max_bytes=1 << 40)
    return folder


def _is_tower(own: Path, name: str) -> bool:
    """Tell whether a tower's files hold the same weights, bit for bit; False when they are not here."""
    try:
        theirs = dict(weights.tower_weights(name))
    except UserError:
        return False
    ours = dict(weights.tower_weights(own))
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items()
    )
