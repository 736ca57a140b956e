"""What is known of a checkpoint without reading its weights; `python -m llava.model.inspect` shows it."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from llava.conversation import choose_template
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import best_device, best_dtype, load_pretrained_model, make_plan
from llava.model.checkpoints import files, quantization
from llava.model.checkpoints.errors import CheckpointError
from llava.model.checkpoints.faults import UnfitWeightsError
from llava.model.checkpoints.generation import GENERATION_FILE, check_generation_config
from llava.model.checkpoints.saving import contradiction
from llava.model.language_model.registry import FAMILIES, family_of, positions_of
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal_encoder.registry import split_name
from llava.model.plan import SMALLEST_NORM, Contents, LoadPlan, delta_told, look_into
from llava.model.tokenizer import load_tokenizer
from llava.protocols import Tokenizer
from llava.utils import UserError

KINDS = {
    "full": "a whole LLaVA",
    "projector": "the projector of a LLaVA (stage 1)",
    "lora": "a LoRA adapter of a LLaVA",
    "text": "a text model",
    "text_lora": "a LoRA adapter of a text model",
}


@dataclass(frozen=True)
class Part:
    """A model that a checkpoint needs: its name, whether it is usable here, and where it is or why not."""

    name: str
    present: bool
    place: str


@dataclass
class Report:
    """What a checkpoint is, what it needs, and what is wrong with it (`problems`).

    dtypes: number of values by dtype, as stored. parameters: of "llm", "projector", "vision tower" and
    "adapter". missing, unexpected, misshapen: weights against what the config asks for; misshapen are (name,
    shape stored, shape expected). exempt: weights neither loaded as stored nor faults, by the reason.
    tokens and rows: entries of tokenizer and embeddings.
    """

    path: str
    kind: str
    what: str
    family: str = ""
    style: str | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    quantization: str | None = None
    base: Part | None = None
    tower: Part | None = None
    template: str = ""
    template_reason: str = ""
    bytes: int = 0
    parameters: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    context_length: int | None = None
    positions: int | None = None
    tokenizer: str | None = None
    tokens: int | None = None
    rows: int | None = None
    exempt: dict[str, list[str]] = field(default_factory=dict)
    generation_config: str = "none"
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def can_chat(self) -> bool:
        """Whether everything that a chat needs is here and fits."""
        return not self.problems


def inspect_checkpoint(model_path: str, model_base: str | None = None) -> Report:
    """Find out everything about a checkpoint that its files tell; nothing is downloaded.

    What is wrong is said by the loader itself, which runs on shapes. Raises CheckpointError when `model_path`
    is no checkpoint that this library loads.
    """
    with _offline(), _silence():
        found = look_into(model_path)
        report = Report(model_path, found.kind, KINDS[found.kind])
        plan = _plan(report, found, model_base)
        if plan is not None and plan.kind != found.kind:  # peft's adapter without a config, on a LLaVA
            found = replace(found, kind=plan.kind)
            report.kind, report.what = found.kind, KINDS[found.kind]
        config = plan.config if plan else found.config
        _describe(report, config, found)
        stored = _stored_shapes(report, found)
        if found.kind in ("full", "projector", "lora"):
            report.tower = _tower(config, stored)
        if plan is not None:
            _load_shapes(report, plan, stored)
            _check_generation_config(report, plan)
        if found.kind == "full":
            _look_for_a_delta(report)
        _choose_template(report, config)
    return report


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's library from downloading: a look into a checkpoint must not fetch its weights."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Leave out warnings and progress bars of a loading that is none."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("llava.model", "bitsandbytes")]
    levels = [one.level for one in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    for one in loggers:
        one.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _plan(report: Report, found: Contents, model_base: str | None) -> LoadPlan | None:
    """Make the loader's plan; a base that is missing becomes a problem."""
    name = model_base or found.recorded_base
    try:
        plan = make_plan(report.path, model_base)
    except CheckpointError as error:
        report.problems.append(str(error))
        report.base = Part(name or "not named", False, "not here")
        return None
    if found.needs_base:
        report.base = _part(plan.source, "given" if model_base else "named in the folder")
    return plan


def _part(name: str, note: str = "") -> Part:
    """Say where a model that is named by folder or hub name lies, or the models of a fused tower."""
    if parts := [_part(one, note) for one in split_name(name)]:
        return Part(name, all(one.present for one in parts), "; ".join(one.place for one in parts))
    try:
        files.read_config(name)
    except CheckpointError as error:
        return Part(name, False, str(error))
    place = "local folder" if Path(name).is_dir() else "in the cache of the hub"
    return Part(name, True, f"{place}, {note}" if note else place)


def _describe(report: Report, config: Mapping[str, Any], found: Contents) -> None:
    """Tell family, style and quantisation from the config."""
    report.positions = positions_of(config)
    if found.kind.startswith("text"):
        report.family = str(config.get("model_type") or "unknown")
    else:
        report.family = family_of(config, report.path).base_type
        report.style, why = _style(config)
        report.what += f" on {report.family}, {report.style} style ({why})"
    stored = config.get("quantization_config") or {}
    if stored and found.kind in ("full", "text"):
        bits = next((bits for bits in (4, 8) if stored.get(f"load_in_{bits}bit")), stored.get("bits"))
        method = stored.get("quant_method", "bitsandbytes")
        report.quantization = f"{method}, {bits} bit" if bits else str(method)


def _style(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the release whose way of seeing images a config has, and what that shows in."""
    projector = config.get("mm_projector_type") or "linear"
    ratio = str(config.get("image_aspect_ratio") or "square")
    merge = config.get("mm_patch_merge_type") or "flat"
    if ratio.startswith("anyres") or merge != "flat":
        return "v1.6", f"{projector} projector, {ratio} images, {merge} merge"
    return ("v0" if projector == "linear" else "v1.5"), f"{projector} projector, {ratio} images"


def _stored_shapes(report: Report, found: Contents) -> dict[str, torch.Tensor]:
    """Read names, shapes and dtypes of what the folder itself stores, and the size of its files."""
    single = {"projector": (files.PROJECTOR_FILE,), "lora": (*files.ADAPTER_FILES, files.NON_LORA_FILE)}
    single["text_lora"] = files.ADAPTER_FILES
    stored: dict[str, torch.Tensor] = {}
    try:
        if found.needs_base:
            places = [place for one in single[found.kind] if (place := files.find_file(report.path, one))]
        else:
            places = files.weight_files(report.path)
        report.bytes = sum(place.stat().st_size for place in places)
        for place in places:
            stored.update(files.read_tensors(place, shapes_only=True))
    except CheckpointError as error:
        report.problems.append(str(error))
    counts: Counter[str] = Counter()
    for value in stored.values():
        counts[str(value.dtype).removeprefix("torch.")] += value.numel()
    report.dtypes = dict(counts.most_common())
    report.parameters = _count(stored.items())
    return stored


def _count(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, int]:
    """Count the values of named tensors by the part of the model they belong to."""
    counts = {"llm": 0, "projector": 0, "vision tower": 0, "adapter": 0}
    for name, value in named:
        if ".lora_" in name:
            counts["adapter"] += value.numel()
        elif files.is_tower_key(name):
            counts["vision tower"] += value.numel()
        elif any(part in name for part in files.PROJECTOR_NAMES):
            counts["projector"] += value.numel()
        else:
            counts["llm"] += value.numel()
    return {name: count for name, count in counts.items() if count}


def _tower(config: Mapping[str, Any], stored: Mapping[str, torch.Tensor]) -> Part | None:
    """Say where the vision tower comes from; its own folder is needed for its config in any case."""
    try:
        settings = MultimodalConfig.checked(config)
    except UserError:  # the loader tells
        return None
    if not settings.vision_tower:
        return None
    part = _part(settings.vision_tower)
    if not any(files.is_tower_key(name) for name in stored):
        return part
    if settings.tower_in_checkpoint:
        return Part(part.name, part.present, f"weights in the checkpoint (tuned); config: {part.place}")
    return Part(part.name, part.present, f"{part.place}; the copy in the checkpoint is not used")


class _Fields:
    """A config.json as an object, for what reads attributes."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.__dict__.update(config)


def _load_shapes(report: Report, plan: LoadPlan, stored: Mapping[str, torch.Tensor]) -> None:
    """Run the loader on shapes: what it refuses are the problems, what it builds is measured."""
    if _is_quantised(report, plan):
        _measure_tokenizer(report, plan)
        return
    loaded = _try(report, plan)
    if loaded is None:
        _measure_tokenizer(report, plan)
        if report.tower is not None and not report.tower.present:
            _try_with_a_stand_in(report, plan)
        return
    tokenizer, model, _, report.context_length = loaded
    adapter = {name: count for name, count in report.parameters.items() if name == "adapter"}
    report.parameters = {**_count(model.named_parameters()), **adapter}
    _compare_tokens(report, plan, tokenizer)


def _is_quantised(report: Report, plan: LoadPlan) -> bool:
    """Tell if the LLM's weights are stored quantised; notes it, and what keeps them from being used here."""
    config = plan.config if plan.source == plan.path else files.read_config(plan.source)
    if not config.get("quantization_config"):
        return False
    report.notes.append("weights are quantised: their names and shapes are not compared with the config")
    device = best_device()
    try:
        bits = quantization.stored_bits(config, plan.source)
        if bits != 16:
            quantization.check_stored(plan.source, bits)
        asked_by = f"{plan.source} ({bits} bit)"
        quantization.check_quantization(bits, device, best_dtype(device), asked_by=asked_by)
    except UserError as error:
        report.problems.append(str(error))
    return True


def _try(report: Report, plan: LoadPlan, **overwrite: object) -> Any:
    """Load on the device "meta"; returns None after a refusal, which is noted."""
    base = plan.source if plan.source != plan.path else None
    try:
        name = get_model_name_from_path(plan.path)
        return load_pretrained_model(
            plan.path,
            base,
            name,
            device="meta",
            overwrite_config=overwrite or None,
            exempt=None if overwrite else report.exempt,
        )
    except UnfitWeightsError as error:
        report.problems.append(str(error))
        report.missing, report.unexpected = error.faults.missing, error.faults.unexpected
        report.misshapen = error.faults.shapes
    except UserError as error:
        if not overwrite and str(error) not in report.problems:
            report.problems.append(str(error))
    return None


def _try_with_a_stand_in(report: Report, plan: LoadPlan) -> None:
    """Look at the other weights although the tower is missing: another tower's config stands in for it."""
    width = plan.config.get("mm_hidden_size") or 1024
    config = {"model_type": "clip_vision_model", "hidden_size": width, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / files.CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        unknown = {"image_aspect_ratio": "square", "mm_vision_select_layer": -1, "s2": False}  # without it
        _try(report, plan, mm_vision_tower=folder, unfreeze_mm_vision_tower=False, **unknown)


def _measure_tokenizer(report: Report, plan: LoadPlan) -> None:
    """Load the tokenizer alone, where the model was refused."""
    try:
        _compare_tokens(report, plan, load_tokenizer(plan.source))
    except UserError as error:
        if str(error) not in report.problems:
            report.problems.append(str(error))


def _compare_tokens(report: Report, plan: LoadPlan, tokenizer: Tokenizer) -> None:
    report.tokenizer, report.tokens = type(tokenizer).__name__, len(tokenizer)
    report.rows = plan.config.get("vocab_size")
    if report.rows is None or report.tokens == report.rows:
        return
    if report.tokens > report.rows:
        told = f"the last {report.tokens - report.rows} tokens get the mean of the other rows"
    else:
        told = "the rows beyond are cut off while loading"
    report.notes.append(
        f"the tokenizer has {report.tokens} tokens, the embeddings {report.rows} rows: {told}"
    )


def _check_generation_config(report: Report, plan: LoadPlan) -> None:
    """Say whether the generation config contradicts itself, as Vicuna's does."""
    place = files.find_file(plan.source, GENERATION_FILE)
    if place is None:
        return
    try:
        check_generation_config(plan.source)
    except CheckpointError as error:
        if str(error) not in report.problems:
            report.problems.append(str(error))
        return
    content = files.read_json(place)
    wrong = contradiction(_Fields(content))
    report.generation_config = wrong or "consistent"
    if wrong:
        report.notes.append(f"{GENERATION_FILE}: {wrong}; it is repaired when the model is saved")


def _look_for_a_delta(report: Report) -> None:
    """Note a published difference of two models, which loads but answers nonsense."""
    names = tuple(family.final_norm_weight for family in FAMILIES)
    try:
        places = files.weight_files(report.path)
        norms = [one for place in places for one in files.read_tensors(place, only=names).items()]
    except CheckpointError:
        return  # told already
    if any(name in names and value.float().abs().mean() < SMALLEST_NORM for name, value in norms):
        report.problems.append(delta_told(report.path))


def _choose_template(report: Report, config: Mapping[str, Any]) -> None:
    name = get_model_name_from_path(report.path)
    report.template, report.template_reason = choose_template(name, dict(config))
