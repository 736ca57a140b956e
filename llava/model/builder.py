"""Loads any checkpoint of the reference: looks at its files, makes a plan, runs one small loader."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.model import (
    LlavaConfig,
    LlavaLlamaForCausalLM,
    LlavaMistralForCausalLM,
    LlavaMptForCausalLM,
)
from llava.model.checkpoints import files, loading, offloading, quantization
from llava.model.checkpoints.errors import CheckpointError, explained
from llava.model.checkpoints.faults import CUT_ROWS, MEAN_ROWS, NEWLINE, Exempt, check_loading, note
from llava.model.checkpoints.token_rows import average_new_rows
from llava.model.language_model.registry import KERNELS, family_of, find_family, kernels_of, llava_config
from llava.model.multimodal.config import MultimodalConfig
from llava.model.plan import LoadPlan, make_plan, tell_of_delta
from llava.model.settings import check_settings
from llava.model.tokenizer import load_tokenizer
from llava.protocols import DeviceMap, LlavaModel, Tokenizer
from llava.utils import UserError, import_optional

__all__ = [
    "DEFAULT_IMAGE_PATCH_TOKEN",
    "DEFAULT_IMAGE_TOKEN",
    "DEFAULT_IM_END_TOKEN",
    "DEFAULT_IM_START_TOKEN",
    "IGNORE_INDEX",
    "IMAGE_TOKEN_INDEX",
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMistralForCausalLM",
    "LlavaMptForCausalLM",
    "LoadPlan",
    "best_device",
    "best_dtype",
    "load_pretrained_model",
    "make_plan",
]

logger = logging.getLogger(__name__)

DEFAULT_CONTEXT_LENGTH = 2048


def best_device() -> str:
    """Name the fastest device that is present: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_dtype(device: str) -> torch.dtype:
    """The dtype that programs load models in: float16 on GPUs, on the CPU what it is fast in."""
    if not str(device).startswith("cpu"):
        return torch.float16
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fast_bfloat16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if fast_bfloat16 else torch.float32


def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: DeviceMap = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    *,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    overwrite_config: dict[str, Any] | None = None,
    customized_config: PreTrainedConfig | None = None,
    multimodal: bool = True,
    exempt: Exempt | None = None,
    **kwargs: object,
) -> tuple[Any, Any, Any, int]:
    """Load a checkpoint of any layout: whole, sharded, projector only, LoRA, delta-applied, or a plain text
    model.

    model_path: folder or hub name; what it is, is read from its files (`model_name` only triggers a warning).
    model_base: base model of LoRA and projector-only folders. dtype (or torch_dtype): float16 unless given;
    "auto" is the checkpoint's own. overwrite_config: fields to change in its config; customized_config: a
    config object in its place. multimodal: accepted for callers of LLaVA-NeXT. Further keywords go to
    transformers' `from_pretrained`; a quantization_config among them, or load_in_8bit and load_in_4bit as
    transformers 4 had them, quantises the LLM's layers alone. exempt: a dict that is filled with the names of
    weights that are neither loaded as they are stored nor faults, by the reason.

    Returns (tokenizer, model in eval mode, image processor or None for a text model, context length). Raises
    CheckpointError for anything missing, damaged or left over.
    """
    _warn_of_lora_name(model_name, model_base)
    plan = make_plan(str(model_path), str(model_base) if model_base is not None else None)
    requested = resolve_dtype(dtype if dtype is not None else torch_dtype, plan.config)
    arguments: dict[str, Any] = {"dtype": requested or torch.float16, **kwargs}
    arguments.update(_placement(device_map, device))
    arguments.update(_attention(use_flash_attn, arguments, plan))
    config = {**plan.config, **(overwrite_config or {})}
    request = quantization.requested_quantization(load_8bit, load_4bit, arguments)
    quantized = _quantize(plan, config, arguments, request)

    if plan.is_llava:
        check_settings(customized_config.to_dict() if customized_config else config, plan.path)
    tokenizer = load_tokenizer(plan.source, use_fast=False)
    if not plan.is_llava:
        if overwrite_config or customized_config:
            arguments["config"] = customized_config or _text_config(plan.source, overwrite_config or {})
        return tokenizer, _load_text(plan, arguments, exempt), None, _context_length(config)

    model, info = _load_llm(plan, customized_config or llava_config(config, plan.path), arguments, exempt)
    loading.load_tower(model, info, plan.path, exempt, whole=False)
    keep_tower_dtype = device_map == "auto" and requested is None and not quantized
    loading.place_tower(model, None if keep_tower_dtype else arguments["dtype"])
    model = _fill(plan, model, info, exempt)
    _add_image_tokens(model, tokenizer, exempt)
    model.eval()
    return tokenizer, model, model.get_vision_tower().image_processor, _context_length(config)


def _warn_of_lora_name(model_name: str | None, model_base: str | None) -> None:
    words = (model_name or "").lower()
    if words.find("lora") >= 0 and model_base is None:
        warnings.warn(
            f"The name {model_name!r} mentions LoRA, but no model_base is given: right for merged weights, "
            f"else pass "
            f"the base model as model_base.",
            stacklevel=3,
        )


def resolve_dtype(dtype: torch.dtype | str | None, config: dict[str, Any]) -> torch.dtype | None:
    """Turn a dtype or its name ("bfloat16", "bf16", "auto" ...) into a torch.dtype; None stays None."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    short = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
    name, told = str(dtype).removeprefix("torch."), f"dtype is {dtype!r}"
    if name == "auto":
        stored = config.get("dtype") or config.get("torch_dtype") or "float16"
        name, told = str(stored).removeprefix("torch."), f"{files.CONFIG_FILE} has dtype {stored!r}"
    found = getattr(torch, short.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"{told}; expected float16, bfloat16, float32 or auto.")
    return found


def _placement(device_map: DeviceMap, device: str) -> dict[str, Any]:
    """Where the model goes: an explicit device beats device_map, as in the reference."""
    if device != "cuda":
        return {"device_map": {"": device}}
    return {} if device_map is None else {"device_map": device_map}


def _quantize(
    plan: LoadPlan, config: dict[str, Any], arguments: dict[str, Any], request: quantization.Request
) -> bool:
    """Complete `arguments` and `config` for weights of 8 or 4 bits, asked for or stored; tell if they are.

    What an adapter's config says of quantisation is how its base was held in training, not how it is stored.
    Raises UserError where such weights do not work.
    """
    is_base = plan.source != plan.path
    base = files.read_config(plan.source) if is_base else plan.config
    stored = quantization.stored_bits(base, plan.source)
    if stored != 16:
        quantization.check_stored(plan.source, stored)
    if is_base:
        config.pop("quantization_config", None)
        if stored != 16:
            raise CheckpointError(
                f"{plan.source} is stored in {stored} bit, and {plan.path} cannot be put on it; give the "
                f"base in 16 or 32 bit, with load_{stored}bit to save memory."
            )
    bits = quantization.choose_bits(request.bits, stored, plan.source, asked_by=request.asked_by)
    quantization.check_quantization(
        stored if bits == 16 else bits,
        arguments.get("device_map"),
        arguments["dtype"],
        asked_by=request.asked_by if bits != 16 else f"{plan.source} ({stored} bit)",
    )
    if bits != 16 and request.config is not None:
        arguments["quantization_config"] = request.config  # LlavaMetaForCausalLM spares what it has to
    else:
        body = family_of(plan.config).body if plan.is_llava else None
        arguments.update(quantization.quantization_arguments(bits, arguments["dtype"], body=body))
    return stored != 16 or bits != 16


def _attention(use_flash_attn: bool, arguments: dict[str, Any], plan: LoadPlan) -> dict[str, Any]:
    wanted = "flash_attention_2" if use_flash_attn else arguments.pop("attn_implementation", None)
    if wanted is None:
        return {}
    offered = kernels_of(plan.config.get("model_type"))
    if wanted in KERNELS and wanted not in offered:
        kind = plan.config.get("model_type")
        logger.warning(
            "%s has only %s attention in transformers; %s is not used", kind, ", ".join(offered), wanted
        )
        return {}
    if wanted == "flash_attention_2":
        import_optional(
            "flash_attn", needed_for="flash_attention_2", install="flash-attn --no-build-isolation"
        )
    return {"attn_implementation": wanted}


def _context_length(config: dict[str, Any]) -> int:
    return config.get("max_sequence_length") or DEFAULT_CONTEXT_LENGTH


def _text_config(path: str, fields: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    with explained(path):
        return AutoConfig.from_pretrained(path, **fields)


def _load_text(plan: LoadPlan, arguments: dict[str, Any], exempt: Exempt | None) -> Any:
    from transformers import AutoModelForCausalLM

    model, info = loading.from_pretrained(AutoModelForCausalLM, plan.source, **arguments)
    check_loading(info, plan.source, tower_is_built=False, projector_later=False, exempt=exempt)
    _settle(plan, model)
    return loading.merge_adapter(model, plan.path).eval() if plan.kind == "text_lora" else model.eval()


def _load_llm(
    plan: LoadPlan, config: PreTrainedConfig, arguments: dict[str, Any], exempt: Exempt | None
) -> tuple[Any, dict[str, Any]]:
    """Load the LLaVA class on the plan's source; an adapter's config keeps its own vocabulary size."""
    model_class = family_of({"model_type": config.model_type}).model_class
    rows = config.vocab_size
    if plan.source != plan.path:
        base = files.read_config(plan.source)
        if family_of(base, plan.source) is not family_of(plan.config):
            raise CheckpointError(
                f"{plan.path} belongs on a {family_of(plan.config).base_type} model; its base {plan.source} "
                f"is of "
                f"type {family_of(base).base_type}."
            )
        config.vocab_size = base.get("vocab_size", rows)
        if (config.pad_token_id or 0) >= config.vocab_size:  # of a token that training added
            config.pad_token_id = None
    model, info = loading.from_pretrained(
        model_class, plan.source, cut=_cut_stored_tower, config=config, **arguments
    )
    _settle(plan, model)
    tower = model.get_vision_tower()
    if tower is None:
        raise CheckpointError(f"{plan.path} is a LLaVA model, but its config names no mm_vision_tower.")
    if "unpad" in (plan.config.get("mm_patch_merge_type") or "") or plan.source != plan.path:
        # left over if the caller changed that, or the base merges tiles and what was trained on it does not
        newlines = {name for name in info["unexpected_keys"] if name.endswith("image_newline")}
        info["unexpected_keys"] = set(info["unexpected_keys"]) - newlines
        note(exempt, NEWLINE, newlines)
    check_loading(
        info,
        plan.source,
        tower_is_built=tower.is_loaded,
        projector_later=plan.source != plan.path,
        exempt=exempt,
    )
    tell_of_delta(model, plan.source)
    _resize(model, rows, exempt)
    return model, info


def _cut_stored_tower(model: LlavaModel) -> None:
    """Leave out layers of the vision tower that no image reaches, if the checkpoint stores them."""
    tower = model.get_vision_tower()
    if tower is not None and tower.is_loaded:
        tower.cut_stored()


def _settle(plan: LoadPlan, model: PreTrainedModel) -> None:
    """Put right what quantisation and a split over devices leave to do after loading."""
    if plan.source != plan.path:
        offloading.refuse_offloading(model, f"{plan.path} is put together with its base {plan.source}")
    offloading.hold_inputs(model, plan.source)
    quantization.settle_layers(model)


def _resize(model: PreTrainedModel, rows: int, exempt: Exempt | None) -> None:
    """Give the embeddings and the head that many rows; new ones are the mean of the others."""
    present = model.get_input_embeddings().weight.shape[0]
    if present == rows:
        return
    names = find_family(model.config.model_type)
    if names is not None:
        note(exempt, MEAN_ROWS if rows > present else CUT_ROWS, names.token_rows)
    offloading.refuse_offloading(model, f"The embeddings are resized to {rows} rows")
    model.resize_token_embeddings(rows, mean_resizing=False)
    if rows > present:
        logger.info("%d rows of the embeddings are not stored: the mean of the others", rows - present)
        average_new_rows(model, rows - present)


def _fill(plan: LoadPlan, model: LlavaModel, info: dict[str, Any], exempt: Exempt | None) -> Any:
    """Put on top of the LLM what the plan's folder brings; returns the model."""
    if plan.kind == "projector":
        loading.fill_projector(model, plan.path, exempt)
    elif plan.kind == "lora":
        projector_missing = any("mm_projector." in name for name in info["missing_keys"])
        loading.load_non_lora(model, plan.path, projector_missing=projector_missing, exempt=exempt)
        model = loading.merge_adapter(model, plan.path)
    return model


def _add_image_tokens(model: PreTrainedModel, tokenizer: Tokenizer, exempt: Exempt | None) -> None:
    """Add the tokens that the config asks for; the embeddings get a row for each token.

    Rows beyond the tokens are cut off, as the reference does, but in families whose models have such rows.
    """
    settings = MultimodalConfig.of(model.config)
    if settings.use_im_patch_token:
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if settings.use_im_start_end:
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    family = find_family(model.config.model_type)
    keeps_spare = family is not None and family.spare_rows
    if not keeps_spare or model.get_input_embeddings().weight.shape[0] < len(tokenizer):
        _resize(model, len(tokenizer), exempt)
