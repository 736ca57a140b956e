"""Writes a LLaVA checkpoint as a llava-hf folder of transformers."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llava.atomic import write_text
from llava.conversation import Conversation, choose_template, conv_templates, conversation_for, find_template
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import LoadPlan, load_pretrained_model, make_plan
from llava.model.checkpoints import files
from llava.model.checkpoints.files import CheckpointError
from llava.model.checkpoints.quantization import refuse_quantised
from llava.model.checkpoints.saving import repair_generation_config
from llava.model.checkpoints.token_rows import STORED_ROWS
from llava.model.checkpoints.writing import refuse_unwritable
from llava.model.conversion import parity as proof
from llava.model.conversion import template, weights
from llava.model.conversion.config import ARCHITECTURES, WITH_VIDEO, hf_config, hf_kind, refuse_tower
from llava.model.conversion.keys import UNUSED_BY_HF, from_hf_name, llava_name, to_hf_name
from llava.model.conversion.serving_folder import missing_for_serving
from llava.model.conversion.tokenizer import add_image_tokens, llava_tokenizer, save_for_hf
from llava.model.language_model.registry import llava_config
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.registry import describe_tower
from llava.model.settings import check_settings

logger = logging.getLogger(__name__)

ROWS_MULTIPLE = 64  # llava-hf pads the vocabulary to such a number of rows
SOURCE_FILE = "llava_config.json"  # LLaVA's own config, for the way back
REPORT_FILE = "parity.json"
_TOWER_LAYER = re.compile(r"vision_tower\..*encoder\.layers\.(\d+)\.")


def to_hf(
    source: str,
    target: str | Path,
    *,
    base: str | None = None,
    conv_mode: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    parity: proof.Settings | None = proof.FULL,
) -> proof.Report | None:
    """Convert a LLaVA checkpoint to a folder for transformers, vLLM and SGLang.

    base: base model of LoRA and projector-only checkpoints. dtype: to round weights to; None keeps what is
    stored. parity: how the result is compared with the source, None for not at all. Returns the comparison.
    Raises ParityError when it fails, CheckpointError for what cannot be converted; `target` is then not
    there.
    """
    check_target(source, target)
    plan = make_plan(source, base)
    if not plan.is_llava:
        raise CheckpointError(f"{source} is a text model; transformers reads it as it is.")
    if plan.source == plan.path:
        refuse_quantised(plan.config, source, "a conversion needs the weights in 16 or 32 bit")
    kind = hf_kind(plan.config, source)
    refuse_tower(describe_tower(check_settings(plan.config, plan.path)), kind, source)
    conversation = template_of(conv_mode, source, plan.config)
    rounded = _rounding(plan, dtype)
    size = weights.stored_bytes(plan.source)
    with weights.new_folder(Path(target), overwrite=overwrite, needs_bytes=size) as folder:
        start_end = MultimodalConfig.of(llava_config(plan.config)).use_im_start_end
        rows = _write(
            plan, folder, conversation, rounded, exact_tower=dtype is None, max_bytes=max_shard_bytes
        )
        if missing := missing_for_serving(folder):
            raise CheckpointError(f"the conversion of {source} is not complete: {'; '.join(missing[:5])}.")
        if parity is None:
            return None
        report = proof.compare(
            lambda: load_rounded(
                plan.path,
                base,
                rounded,
                parity,
                exact_tower=dtype is None,
                as_stored=_left_alone(plan) if plan.kind == "lora" and dtype is None else (),
            ),
            str(folder),
            conversation,
            settings=parity,
            own_template=True,
            start_end=start_end,
            rows=rows,
        )
        if not report.passed:
            raise proof.ParityError(report)
        write_text(folder / REPORT_FILE, json.dumps(report.content(), indent=2) + "\n")
    return report


def check_target(source: str, target: str | Path) -> None:
    """Raise CheckpointError when a conversion would write over its own source, or cannot write at all."""
    if os.path.exists(source) and Path(source).resolve() == Path(target).resolve():
        raise CheckpointError(f"DST {target} is the source itself; give the name of another folder.")
    refuse_unwritable(target, "DST")


def template_of(conv_mode: str | None, path: str, config: object) -> Conversation:
    """Return the conversation template of a checkpoint, or the one that is asked for."""
    if conv_mode is not None:
        find_template(conv_mode)
    key, reason = (
        (conv_mode, "as asked") if conv_mode else choose_template(get_model_name_from_path(path), config)
    )
    logger.info("conversation template: %s (%s)", key, reason)
    return conv_templates[key]


def _rounding(plan: LoadPlan, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that the LLM has to be loaded in: None for a checkpoint whose weights stay as stored."""
    if dtype is not None or plan.kind != "lora":
        return dtype
    return weights.first_dtype(plan.source)  # adapters are merged in the dtype of their base


def _write(
    plan: LoadPlan,
    folder: Path,
    conversation: Conversation,
    rounded: torch.dtype | None,
    *,
    exact_tower: bool,
    max_bytes: int,
) -> int:
    """Write all files of the folder; returns how many rows of the vocabulary are the checkpoint's own."""
    config = llava_config(plan.config)
    settings = MultimodalConfig.of(config)
    tower = describe_tower(settings)
    tokenizer = llava_tokenizer(plan.source, config)
    known = len(tokenizer)  # rows that LLaVA's loader keeps
    videos = hf_kind(plan.config, plan.path) in WITH_VIDEO
    tokenizer = add_image_tokens(tokenizer, videos=videos)
    total = -(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    stored_dtype = weights.dtype_name(rounded or weights.first_dtype(plan.source))
    content = hf_config(
        plan.config, tower, path=plan.path, layers=_stored_layers(plan, tower), vocabulary=total,
        tokens=tokenizer, dtype=stored_dtype,
    )  # fmt: skip
    conversation = conversation_for(conversation, tokenizer)
    jinja = template.chat_template(conversation, start_end=settings.use_im_start_end, videos=videos)
    save_for_hf(tokenizer, folder, jinja)
    template.save_processor(
        folder, template.image_processor_fields(tower.image_processor, content), content, jinja
    )
    write_json(folder / files.CONFIG_FILE, content)
    write_json(folder / SOURCE_FILE, plan.config)
    write_json(folder / "generation_config.json", _generation_config(plan.source, content))

    named = weights.with_rows(_llava_weights(plan, rounded), keep=known, total=total)
    renamed = (
        (_hf_name(name, plan.path), value) for name, value in named if not name.startswith(UNUSED_BY_HF)
    )
    # the tower is stored in its own dtype, which usually is another than the LLM's
    found = weights.write_weights(
        renamed, folder, dtype=None if exact_tower else rounded, max_bytes=max_bytes
    )
    shapes = {from_hf_name(name): shape for name, shape in found.items()}
    weights.check_shapes(shapes, expected_shapes(content), plan.path, tied=content["tie_word_embeddings"])
    return min(known, plan.config.get("vocab_size", known))


def _stored_layers(plan: LoadPlan, tower: VisionTower) -> int:
    """Return how many layers of its tower a checkpoint stores; those of LLaVA-NeXT may lack the last ones."""
    if not MultimodalConfig.of(llava_config(plan.config)).tower_in_checkpoint:
        return tower.num_layers
    names = [
        *files.load_weights(plan.source, shapes_only=True),
        *({} if plan.kind == "full" else _brought(plan)),
    ]
    places = [found[1] for name in names if (found := _TOWER_LAYER.search(name))]
    return max(map(int, places)) + 1 if places else tower.num_layers


def _hf_name(name: str, path: str) -> str:
    try:
        return to_hf_name(name)
    except KeyError as error:
        raise CheckpointError(f"{path} has a weight {name}, which no LLaVA has.") from error


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as transformers does."""
    write_text(file, json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True) + "\n")


def expected_shapes(content: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of a llava-hf folder with this config, under LLaVA's names."""
    config = CONFIG_MAPPING[content["model_type"]].from_dict(dict(content))
    with torch.device("meta"):
        model = getattr(transformers, ARCHITECTURES[content["model_type"]])(config)
    return {from_hf_name(name): tuple(value.shape) for name, value in model.state_dict().items()}


def _generation_config(path: str, content: dict[str, Any]) -> dict[str, Any]:
    """The source's generation config, made consistent, with the new padding token."""
    file = files.find_file(path, "generation_config.json")
    holder = SimpleNamespace(
        generation_config=GenerationConfig.from_dict(files.read_json(file) if file else {})
    )
    repair_generation_config(holder)
    fields = holder.generation_config.to_diff_dict()
    tokens = {name: content[name] for name in ("bos_token_id", "eos_token_id")}
    return {**tokens, **fields, "pad_token_id": content["pad_token_id"]}


# --------------------------------------------------------------------------------------------- LLaVA's side


def _llava_weights(plan: LoadPlan, rounded: torch.dtype | None) -> weights.Named:
    """Yield the weights of a checkpoint under LLaVA's names, tower included, each in the dtype it has."""
    settings = MultimodalConfig.of(llava_config(plan.config))
    own_tower = False
    for stored_name, value in _of_kind(plan, rounded):
        name = llava_name(stored_name)
        if files.is_recomputed(name) or (files.is_tower_key(name) and not settings.tower_in_checkpoint):
            continue
        own_tower = own_tower or files.is_tower_key(name)
        yield name, value
    if not own_tower:
        yield from weights.tower_weights(str(settings.vision_tower))


def _of_kind(plan: LoadPlan, rounded: torch.dtype | None) -> weights.Named:
    if plan.kind == "full":
        return weights.stored(plan.path)
    return _merged(plan, rounded) if plan.kind == "lora" else _left_alone(plan)


def _brought(plan: LoadPlan) -> dict[str, torch.Tensor]:
    """Read what a LoRA or projector-only folder brings beside the adapter, under the model's names."""
    name = files.NON_LORA_FILE if plan.kind == "lora" else files.PROJECTOR_FILE
    file = files.find_file(plan.path, name)
    found = files.strip_adapter_prefix(files.read_tensors(file)) if file else {}
    found = {name: value for name, value in found.items() if not name.startswith(STORED_ROWS)}
    parts = {
        f"model.{name}": value for name, value in found.items() if name.startswith(files.PROJECTOR_NAMES)
    }
    return {**{name: value for name, value in found.items() if f"model.{name}" not in parts}, **parts}


def _adapted(plan: LoadPlan) -> set[str]:
    """Name the weights that the adapter of a LoRA folder changes; none of a projector-only one."""
    names: list[str] = []
    if plan.kind == "lora":
        found = [files.find_file(plan.path, name) for name in files.ADAPTER_FILES]
        names += [name for file in found if file for name in files.read_tensors(file, shapes_only=True)]
    modules = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in names}
    return modules | {f"{module}.{part}" for module in modules for part in ("weight", "bias")}


def _left_alone(plan: LoadPlan) -> weights.Named:
    """Yield, as they are stored, the weights of a base that an adapter does not change, and those brought."""
    brought, adapted = _brought(plan), _adapted(plan)
    yield from weights.stored(plan.source, lambda name: name not in brought and name not in adapted)
    yield from brought.items()


def _merged(plan: LoadPlan, rounded: torch.dtype | None) -> weights.Named:
    """Load a LoRA with its base, which merges it, and yield the weights of the whole."""
    _, model, _, _ = load_pretrained_model(
        plan.path, plan.source, "", device="cpu", device_map=None, dtype=rounded
    )
    state = model.state_dict()
    del model
    for name, value in _left_alone(plan):
        if name in state and state[name].shape == value.shape:  # else rows were added
            del state[name]
            yield name, value
    for name in list(state):
        yield name, state.pop(name)


def load_rounded(
    path: str,
    base: str | None,
    rounded: torch.dtype | None,
    settings: proof.Settings,
    *,
    exact_tower: bool,
    as_stored: Iterable[tuple[str, torch.Tensor]] = (),
    overwrite: dict[str, Any] | None = None,
) -> tuple[Any, Any, Any]:
    """Load (tokenizer, model, image processor) with weights rounded to a dtype, to be run in another.

    exact_tower: a tower that has files of its own is read from them unrounded. as_stored: named weights that
    the model gets unrounded as well.
    """
    device = {"": settings.device}
    tokenizer, model, processor, _ = load_pretrained_model(
        path,
        base,
        "",
        device=settings.device,
        device_map=device,
        dtype=rounded or settings.dtype,
        overwrite_config=overwrite,
    )
    tower = model.get_vision_tower()
    if rounded is not None and exact_tower and not MultimodalConfig.of(model.config).tower_in_checkpoint:
        tower.is_loaded = False
        tower.load_model()
    model = model.to(device=settings.device, dtype=settings.dtype)
    places = model.state_dict()
    for name, value in as_stored:
        if value.dtype != rounded and name in places:
            rows = min(len(places[name]), len(value))
            places[name][:rows].copy_(value[:rows])
    return tokenizer, model, processor
