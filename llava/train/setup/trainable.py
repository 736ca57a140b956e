"""What trains: freezing, LoRA, the quantised base under it, and a table of the result for the log."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llava.model.checkpoints import quantization
from llava.model.checkpoints.gather import is_split
from llava.train.plan import RunPlan
from llava.utils import UserError

logger = logging.getLogger(__name__)

# Parts whose linear layers never get an adapter: they train whole or not at all.
NO_ADAPTER = quantization.NEVER_QUANTIZED
PARTS = {
    "lora_": "adapters",
    "mm_projector": "projector",
    "vision_tower": "tower",
    "image_newline": "newline",
}
NOTHING_TRAINS = "these flags freeze every weight; there is nothing to train"


# ---- the quantised base (QLoRA, https://arxiv.org/abs/2305.14314) ----


def quantization_arguments(plan: RunPlan, body: str = "model") -> dict[str, Any]:
    """Return the arguments of from_pretrained that quantise the LLM to --bits; none for 16 bits.

    body: name of the module that is the LLM without its head.
    Raises UserError where bitsandbytes is missing or does not work on the device.
    """
    bits, dtype = plan.bits, plan.compute_dtype
    if bits == 16:
        return {}
    device_map = {"": plan.device}
    quantization.check_quantization(bits, device_map, dtype, asked_by=f"--bits {bits}")
    arguments = quantization.quantization_arguments(
        bits, dtype, body=body, double_quant=plan.double_quant, quant_type=plan.quant_type
    )
    return {**arguments, "device_map": device_map}


def prepare_quantized(model: PreTrainedModel, plan: RunPlan) -> Any:
    """Freeze a quantised LLM and make gradients pass through it."""
    from peft import prepare_model_for_kbit_training

    quantization.settle_layers(model, trains=True)
    return prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=bool(plan.gradient_checkpointing)
    )


def cast_quantized(model: PreTrainedModel, plan: RunPlan) -> None:
    """Bring the parts that are not quantised to the dtypes the reference trains them in."""
    half = torch.bfloat16
    for name, module in model.named_modules():
        if any(part in name for part in NO_ADAPTER):
            continue
        if "norm" in name:
            module.to(torch.float32)
        elif (
            plan.bf16
            and hasattr(module, "weight")
            and ("lm_head" in name or "embed_tokens" in name)
            and module.weight.dtype == torch.float32
        ):
            module.to(half)


# ---- LoRA (https://arxiv.org/abs/2106.09685) ----


def find_all_linear_names(model: nn.Module) -> list[str]:
    """List the names of the LLM's linear layers inside their block ("q_proj", ...), without the head.

    GPT-2's `Conv1D` is one. Routers of experts, which return several tensors, are not, also where
    transformers derives them from a linear layer; Falcon's layers, which compute the same, are.
    """
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and not _is_router(module)
        and not any(part in name for part in NO_ADAPTER)
    }
    heads = {"lm_head", *(name.rpartition(".")[2] for name, module in linear.items() if module is head)}
    return sorted({name.rpartition(".")[2] for name in linear} - heads)


def _is_router(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("transformers.models.") and not kind.__name__.endswith("Linear")


def add_lora(model: PreTrainedModel, plan: RunPlan) -> Any:
    """Wrap a model with LoRA adapters on every linear layer of the LLM; everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    # a tower that is already loaded has layers of the same names
    excluded = any(part in name for name, _ in model.named_modules() for part in NO_ADAPTER)
    config = LoraConfig(
        r=plan.lora_r,
        lora_alpha=plan.lora_alpha,
        target_modules=find_all_linear_names(model),
        exclude_modules=rf".*\.({'|'.join(NO_ADAPTER)})\..*" if excluded else None,
        lora_dropout=plan.lora_dropout,
        bias=plan.lora_bias,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


# ---- what trains ----


def freeze_for_stage_1(model: PreTrainedModel) -> None:
    """Freeze everything but the projector and `image_newline`, which stands among its outputs."""
    model.requires_grad_(False)
    model.get_model().mm_projector.requires_grad_(True)
    newline = getattr(model.get_model(), "image_newline", None)
    if newline is not None:
        newline.requires_grad_(True)


def unfreeze_tower(model: PreTrainedModel, plan: RunPlan) -> None:
    """Make the vision tower train.

    It takes the dtype of its optimizer's weights: a float32 start is not rounded to half precision first.
    """
    tower = model.get_vision_tower()
    tower.unfreeze()
    tower.to(dtype=plan.trained_dtype)


def keep_trained_in_float32(model: nn.Module, plan: RunPlan) -> None:
    """Hold every weight that trains in float32 (see RunPlan.weight_dtype); DeepSpeed keeps copies of its own.

    ZeRO-3 needs one dtype for all weights: those that were not made under it (projector, adapters) get it.
    """
    dtype = plan.trained_dtype
    if plan.deepspeed and dtype == torch.float32:
        return
    for param in model.parameters():
        if is_split(param) or not param.is_floating_point():
            continue
        if (param.requires_grad or plan.deepspeed) and param.dtype != dtype:
            param.data = param.data.to(dtype)


def log_trainable(model: nn.Module, plan: RunPlan) -> None:
    """Log what trains: part, tensors, values, dtype, learning rate. Raises UserError when nothing does."""
    parts: dict[tuple[str, str, float], list[int]] = defaultdict(lambda: [0, 0])
    for name, param in model.named_parameters():
        if param.requires_grad:
            rate = plan.own_rate(name)
            rate = plan.learning_rate if rate is None else rate
            row = parts[_part_of(name), str(param.dtype).removeprefix("torch."), rate]
            row[0] += 1
            row[1] += getattr(param, "ds_numel", param.numel())
    if not parts:
        raise UserError(NOTHING_TRAINS)
    for (part, dtype, rate), (tensors, values) in parts.items():
        logger.info(
            "trains: %-11s %4d tensors %14s values %s, rate %g", part, tensors, f"{values:,}", dtype, rate
        )


def _part_of(name: str) -> str:
    return next((part for key, part in PARTS.items() if key in name), "LLM")
