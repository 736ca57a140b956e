"""Quantising the LLM with bitsandbytes: which layers, on which devices, and what a stored model tells."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llava.model.checkpoints.files import CheckpointError, first_line, load_weights
from llava.protocols import DeviceMap
from llava.utils import UserError, import_optional

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig
    from transformers.utils.quantization_config import QuantizationConfigMixin

logger = logging.getLogger(__name__)

# parts of a LLaVA that are held as they are; the head stays as well
NEVER_QUANTIZED = ("mm_projector", "vision_tower", "vision_resampler")

# what bitsandbytes' CPU kernel for bfloat16 takes: rows in tiles of 32, columns in blocks of 64
PACKED_ROWS, PACKED_COLUMNS = 32, 64

# fields of a BitsAndBytesConfig that transformers 4 took as keywords of `from_pretrained` as well
KEYWORDS = ("load_in_8bit", "load_in_4bit")
KEYWORD_STARTS = ("bnb_4bit_", "llm_int8_")

AUTOMATIC_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def requested_bits(load_8bit: bool, load_4bit: bool) -> int:
    """Return the bits of a weight that the two flags ask for: 8, 4, or 16 for neither."""
    if load_8bit and load_4bit:
        logger.warning("both load_8bit and load_4bit are given; 8 bits are used, as in the reference")
    return 8 if load_8bit else 4 if load_4bit else 16


def quantization_arguments(
    bits: int,
    compute_dtype: torch.dtype,
    *,
    body: str | None = "model",
    double_quant: bool = True,
    quant_type: str = "nf4",
) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantise the LLM's linear layers; none for 16 bits.

    Tower, projector and head stay as they are; of a text model, the head that transformers finds. body: name
    of a LLaVA's module that is the LLM without its head; None: a text model.
    double_quant and quant_type ("nf4" or "fp4") are for 4 bits; the defaults are the reference's.
    """
    if bits == 16:
        return {}
    from transformers import BitsAndBytesConfig

    skipped = None if body is None else spared_parts(body)
    if bits == 8:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
    )
    return {"quantization_config": config}


def spared_parts(body: str) -> list[str]:
    """Return the modules of a LLaVA that stay as they are; `body` is its LLM without the head.

    They are matched from the start of a module's name, so the whole path is needed.
    """
    return [*(f"{body}.{name}" for name in NEVER_QUANTIZED), "lm_head"]


# ---- what a caller gives ----


@dataclass(frozen=True)
class Request:
    """What a caller asks for: bits of a weight (16: nothing), the config, None for the reference's, and the
    word it was asked with, for messages."""

    bits: int
    config: BitsAndBytesConfig | None
    asked_by: str


def requested_quantization(load_8bit: bool, load_4bit: bool, keywords: dict[str, Any]) -> Request:
    """Read what `load_pretrained_model` is asked for, and take what says so out of its further keywords.

    Raises UserError for two requests that differ, and for a quantisation that is not bitsandbytes'.
    """
    bits = requested_bits(load_8bit, load_4bit)
    named = next((name for name in KEYWORDS if keywords.get(name)), "quantization_config")
    config = keywords_as_config(keywords)
    if config is None:
        return Request(bits, None, f"load_{bits}bit")
    from transformers import BitsAndBytesConfig

    own = 0
    if isinstance(config, BitsAndBytesConfig):
        own = 8 if config.load_in_8bit else 4 if config.load_in_4bit else 0
    if not own:
        raise UserError(
            f"{named} is a {type(config).__name__} that asks for neither 8 nor 4 bit; expected a "
            f"BitsAndBytesConfig with load_in_8bit=True or load_in_4bit=True."
        )
    if bits not in (16, own):
        raise UserError(f"load_{bits}bit is given, and {named} asks for {own} bit; give one of the two.")
    return Request(own, config, named)


def keywords_as_config(keywords: dict[str, Any]) -> QuantizationConfigMixin | None:
    """Take quantization_config out of the keywords of a `from_pretrained`; None if there is none.

    `load_in_8bit=True`, `load_in_4bit=True` and the fields beside them mean the BitsAndBytesConfig of these
    values, as in transformers 4; transformers 5 has dropped them. Raises UserError where both are given.
    """
    config = keywords.pop("quantization_config", None)
    asked = [name for name in KEYWORDS if keywords.pop(name, False)]
    fields = {
        name: keywords.pop(name) for name in list(keywords) if asked and name.startswith(KEYWORD_STARTS)
    }
    if asked and (config is not None or len(asked) > 1):
        both = asked[1] if config is None else "quantization_config"
        raise UserError(f"{asked[0]} and {both} are both given; give one of the two.")
    if asked:
        return _config_of({asked[0]: True, **fields}, asked[0])
    return _config_of(dict(config), "quantization_config") if isinstance(config, Mapping) else config


def _config_of(fields: dict[str, Any], asked_by: str) -> QuantizationConfigMixin:
    """Build the config of some fields, of whatever quantisation they name; without a name of bitsandbytes."""
    from transformers.quantizers import AutoQuantizationConfig

    if fields.get("quant_method", "bitsandbytes") == "bitsandbytes":
        import_optional("bitsandbytes", needed_for=asked_by, install="bitsandbytes>=0.49")
    try:
        return AutoQuantizationConfig.from_dict({"quant_method": "bitsandbytes", **fields})
    except (TypeError, ValueError) as error:
        raise UserError(f"{asked_by}: {first_line(error)}") from error


def sparing_parts(config: QuantizationConfigMixin, body: str) -> QuantizationConfigMixin:
    """Return a copy of a caller's config that also spares a LLaVA's tower, projector and head."""
    config = copy.deepcopy(config)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):
        if hasattr(config, name):
            given = getattr(config, name) or []
            setattr(config, name, [*given, *(part for part in spared_parts(body) if part not in given)])
    return config


# ---- what works here ----


def check_quantization(bits: int, device_map: DeviceMap, dtype: torch.dtype, *, asked_by: str) -> None:
    """Raise UserError, before any weight is read, where a model of 8 or 4 bits cannot run.

    device_map: as `from_pretrained` takes it. asked_by: what asked for it ("load_4bit"), for the message.
    bitsandbytes is tried on one small layer, since what it can do depends on its version, the platform and
    the processor.
    """
    if bits == 16 or device_map in ("meta", {"": "meta"}):  # "meta": names and shapes only
        return
    # it warns of a kernel package that does not exist for this, and for each call of an 8-bit layer
    for name in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{name}").setLevel(logging.ERROR)
    devices = list(_devices(device_map))
    kinds = {str(device).partition(":")[0] for device in devices}
    if "mps" in kinds:
        raise UserError(
            f"{asked_by} needs CUDA or a CPU, the device is mps; omit it (float16 on mps), or use "
            f"device 'cpu'."
        )
    if "disk" in kinds or (len(kinds) > 1 and "cpu" in kinds):
        raise UserError(
            f"{asked_by} cannot offload: device_map has {', '.join(sorted(kinds))}. Place the whole model on "
            f"GPUs or on the CPU, or leave {asked_by} away."
        )
    import_optional("bitsandbytes", needed_for=asked_by, install="bitsandbytes>=0.49")
    for device in sorted(set(map(str, devices))):
        _try_small_layer(bits, device, dtype, asked_by)


def _devices(device_map: DeviceMap) -> Iterable[str | torch.device]:
    """Yield the devices of a device map: "cuda:0", "cpu", "disk" ..."""
    if device_map is None:
        # where bitsandbytes quantises to, whatever .to() follows
        yield "cuda" if torch.cuda.is_available() else "cpu"
    elif isinstance(device_map, Mapping):
        for device in device_map.values():
            yield f"cuda:{device}" if isinstance(device, int) else device
    elif device_map in AUTOMATIC_MAPS:
        yield from ["cuda"] if torch.cuda.is_available() else ["mps"] if _has_mps() else ["cpu"]
    else:
        yield f"cuda:{device_map}" if isinstance(device_map, int) else device_map


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _try_small_layer(bits: int, device: str, dtype: torch.dtype, asked_by: str) -> None:
    """Quantise a small layer and run it once. Raises UserError with what bitsandbytes says."""
    import bitsandbytes

    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            if bits == 8:
                layer = bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False, threshold=6.0)
            else:
                layer = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=dtype, quant_type="nf4")
            layer = layer.to(device).eval()
            result = layer(torch.ones(2, 64, device=device, dtype=dtype))  # (2, 64)
        if not result.isfinite().all():
            raise RuntimeError("its result is not finite")
    except Exception as error:  # a missing library may show as anything
        raise UserError(
            f"{asked_by} does not work on {device} in {str(dtype).removeprefix('torch.')} with bitsandbytes "
            f"{bitsandbytes.__version__} ({first_line(error)}); omit it, or try another version of "
            f"bitsandbytes (0.49 or newer)."
        ) from error


def settle_layers(model: torch.nn.Module, *, trains: bool = False) -> None:
    """Keep bitsandbytes from repacking 4-bit layers for its CPU kernel where that fails.

    On CPUs with bfloat16 instructions (AVX512_BF16) the first pass in eval mode repacks each layer. Layers of
    other widths than the kernel's tiles end in an assertion, and a repacked layer gives wrong gradients to
    what stands before it (bitsandbytes 0.49.0 and 0.50.2: an evaluation would spoil the training after it).
    Layers that stay unpacked are computed from their dequantised weights.
    """
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if getattr(module, "support_avx512bf16_for_cpu", False):
            fits = module.out_features % PACKED_ROWS == 0 and module.in_features % PACKED_COLUMNS == 0
            if trains or not fits:
                module.support_avx512bf16_for_cpu = False


# ---- models that are stored in 8 or 4 bits ----


def stored_bits(config: Mapping[str, Any], path: str) -> int:
    """Return the bits of the weights that a `config.json` describes: 16 unless they are quantised.

    Raises CheckpointError for a quantisation that is not bitsandbytes'.
    """
    stored = config.get("quantization_config")
    if not stored:
        return 16
    method = stored.get("quant_method", "bitsandbytes")
    if method != "bitsandbytes":
        raise CheckpointError(
            f"{path} is quantised with {method!r}; only bitsandbytes (8 and 4 bit) is read here. Use the "
            f"model it was made from, with load_4bit or load_8bit to save memory."
        )
    return 8 if stored.get("load_in_8bit") else 4 if stored.get("load_in_4bit") else 16


def refuse_quantised(config: Mapping[str, Any], path: str, why: str) -> None:
    """Raise CheckpointError for weights that are stored quantised; why: what needs them otherwise."""
    bits = stored_bits(config, path)
    if bits != 16:
        raise CheckpointError(f"{path} is stored in {bits} bit; {why}, so give the model it was made from.")


def check_stored(path: str, bits: int) -> None:
    """Raise CheckpointError where a `config.json` says quantised and the weights beside it are not.

    bitsandbytes stores bytes; of the weights only names and dtypes are read.
    """
    shapes = load_weights(path, shapes_only=True)
    if shapes and not any(value.dtype in (torch.uint8, torch.int8) for value in shapes.values()):
        dtypes = ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in shapes.values()}))
        raise CheckpointError(
            f"{path}: config.json has a quantization_config of {bits} bit, but the weights are not quantised "
            f"({dtypes}); remove quantization_config from it, or quantise while loading with load_{bits}bit."
        )


def choose_bits(requested: int, stored: int, path: str, *, asked_by: str | None = None) -> int:
    """Return the bits to quantise to while loading, 16 if nothing is to be done.

    Raises CheckpointError when the weights are stored in another number of bits than asked for.
    """
    if stored == 16:
        return requested
    if requested not in (16, stored):
        raise CheckpointError(
            f"{path} is stored in {stored} bit, {asked_by or f'load_{requested}bit'} cannot change that; "
            f"omit it, or load the model it was made from."
        )
    return 16
