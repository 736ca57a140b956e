"""The work of apply_delta, make_delta and consolidate: one weight at a time, base against LLaVA."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from llava.model.checkpoints import files, loading, quantization
from llava.model.checkpoints.faults import check_loading
from llava.model.checkpoints.files import CheckpointError
from llava.model.checkpoints.saving import repair_generation_config
from llava.model.checkpoints.writing import (
    refuse_adapter_in,
    refuse_input_as_target,
    refuse_unwritable,
    whole_folder,
)
from llava.model.language_model.registry import FAMILIES, family_of, llava_config
from llava.model.plan import look_into
from llava.model.tokenizer import load_tokenizer
from llava.model.utils import auto_upgrade

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_NEAR = 0.05  # part of a norm's weights that counts as no difference

# weights that a text base cannot have; a delta carries them whole
NOT_IN_BASE = (*files.PROJECTOR_NAMES, "vision_tower.")


def add_base(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Write base + delta to `target_model_path`; see llava.model.apply_delta."""
    refuse_input_as_target(target_model_path, (base_model_path, delta_path))
    refuse_unwritable(target_model_path, "--target-model-path")
    refuse_adapter_in(target_model_path, "--target-model-path")
    _check_order(base_model_path, delta_path)
    base = load_for_delta(base_model_path)
    model = load_for_delta(delta_path)
    _check_norm(base, model, delta_path, is_delta=True)
    with torch.no_grad():
        combine(model, base.state_dict(), torch.Tensor.add_, source=delta_path)
    _check_finite(model, delta_path)
    with whole_folder(target_model_path, "--target-model-path") as folder:
        model.save_pretrained(folder)
        load_tokenizer(delta_path).save_pretrained(folder)
    logger.info("wrote %s", target_model_path)


def subtract_base(
    base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None
) -> None:
    """Write target - base to `delta_path`; see llava.model.make_delta."""
    refuse_input_as_target(delta_path, (base_model_path, target_model_path))
    refuse_unwritable(delta_path, "--delta-path")
    refuse_adapter_in(delta_path, "--delta-path")
    _check_order(base_model_path, target_model_path)
    base = load_for_delta(base_model_path)
    model = load_for_delta(target_model_path)
    _check_norm(base, model, target_model_path, is_delta=False)
    with torch.no_grad():
        combine(model, base.state_dict(), torch.Tensor.sub_, source=target_model_path)
    _check_finite(model, target_model_path)
    tokenizer = load_tokenizer(target_model_path)
    with whole_folder(delta_path, "--delta-path") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if hub_repo_id:
        model.push_to_hub(hub_repo_id)
        tokenizer.push_to_hub(hub_repo_id)
    logger.info("wrote %s", delta_path)


def rewrite(src_path: str, dst_path: str) -> None:
    """Load `src_path` and write it to `dst_path`; see llava.model.consolidate."""
    refuse_unwritable(dst_path, "--dst")
    refuse_adapter_in(dst_path, "--dst")
    auto_upgrade(src_path)
    model = load_for_delta(src_path)
    _check_finite(model, src_path)
    with whole_folder(dst_path, "--dst") as folder:
        model.save_pretrained(folder)
        load_tokenizer(src_path).save_pretrained(folder)
    logger.info("wrote %s", dst_path)


def _check_order(base: str, other: str) -> None:
    """Raise CheckpointError for a base that is a LLaVA beside a text model, and for quantised weights."""
    found = {path: look_into(path) for path in (base, other)}
    if found[base].kind == "full" and found[other].kind == "text":
        raise CheckpointError(
            f"{base} sees images and {other} does not; the base is the text model, so give them the other "
            "way round."
        )
    for path, one in found.items():
        if not one.needs_base:
            quantization.refuse_quantised(one.config, path, "a delta needs the weights in 16 or 32 bit")


def _check_norm(base: PreTrainedModel, model: PreTrainedModel, path: str, *, is_delta: bool) -> None:
    """Raise CheckpointError for a whole model in place of a delta, or the other way round.

    The last norm's weights hardly move in training: a whole model has the base's, a delta has zeros.
    """
    ours, theirs = (dict(one.named_parameters()) for one in (model, base))
    for name in {family.final_norm_weight for family in FAMILIES} & ours.keys() & theirs.keys():
        own, of_base = ours[name].detach().float(), theirs[name].detach().float()
        if own.shape != of_base.shape:
            continue  # told when they are combined
        scale = float(of_base.abs().mean())
        if is_delta and float((own - of_base).abs().mean()) < _NEAR * scale:
            raise CheckpointError(
                f"{path} is a whole model, not a delta: its last norm is that of the base, which would be "
                "added a second time; give the delta that was published or made with llava.model.make_delta."
            )
        if not is_delta and float(own.abs().mean()) < _NEAR * scale:
            raise CheckpointError(
                f"{path} is a delta, not a whole model: its last norm is next to zero; give the model that "
                "llava.model.apply_delta makes of it."
            )


def _check_finite(model: PreTrainedModel, path: str) -> None:
    """Raise CheckpointError for weights that became infinite in the dtype they are written in, or are NaN."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            dtype = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: {name} has values that are not finite in {dtype}, in which it would be written; "
                "nothing was written."
            )


def load_for_delta(path: str, dtype: torch.dtype = torch.float16) -> Any:
    """Load a LLaVA or a text model to the CPU, with no weight missing, fit to be saved."""
    found = look_into(path)
    if found.needs_base:
        raise CheckpointError(
            f"{path} is not a whole model (it is of the kind {found.kind!r}); give one that is."
        )
    config = found.config
    if found.kind == "full":
        model_class, arguments = family_of(config).model_class, {"config": llava_config(config)}
    else:
        from transformers import AutoModelForCausalLM

        model_class, arguments = AutoModelForCausalLM, {}
    model, info = loading.from_pretrained(model_class, path, dtype=dtype, **arguments)
    tower = model.get_vision_tower() if hasattr(model, "get_vision_tower") else None
    built = tower is not None and tower.is_loaded
    check_loading(info, path, tower_is_built=built, projector_later=False)
    repair_generation_config(model)
    return model


def combine(
    model: PreTrainedModel,
    base: Mapping[str, torch.Tensor],
    operation: Callable[[torch.Tensor, torch.Tensor], Any],
    *,
    source: str,
) -> None:
    """Apply the in-place `operation(weight, base weight)` to every weight of `model` that the base has.

    A larger embedding matrix is combined over the base's rows. Raises CheckpointError for a weight that has
    no counterpart, or one of another shape; `source` is named in it.
    """
    for name, weight in model.state_dict().items():
        if name not in base:
            if any(part in name for part in NOT_IN_BASE):
                continue
            raise CheckpointError(f"{source}: the base has no {name}; is it the right base model?")
        rows = base[name].shape[0] if base[name].ndim else None
        part = weight if weight.shape == base[name].shape else weight[:rows]
        if part.shape != base[name].shape or (weight.shape != base[name].shape and not _has_token_rows(name)):
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(weight.shape)}, in the base {tuple(base[name].shape)}; "
                f"is it the "
                f"right base model?"
            )
        operation(part, base[name])


def _has_token_rows(name: str) -> bool:
    return any(name in family.token_rows for family in FAMILIES)
