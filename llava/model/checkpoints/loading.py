"""Steps that loaders share: weights with every key accounted for, tower, projector, adapter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch

from llava.model.checkpoints import files
from llava.model.checkpoints.class_loading import loading_report_held
from llava.model.checkpoints.errors import CheckpointError, explained, first_line, reason_of, shown
from llava.model.checkpoints.faults import (
    BROUGHT_LATER,
    NEW_ROWS,
    NEWLINE,
    TOWER_BEHIND,
    TOWER_REST,
    Exempt,
    count_of,
    note,
    some_of,
)
from llava.model.checkpoints.generation import check_generation_config
from llava.model.checkpoints.on_demand import reading_held
from llava.model.checkpoints.token_rows import STORED_ROWS, set_new_token_rows
from llava.protocols import CausalModel, LlavaModel, Tower
from llava.utils import import_optional

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

COMPARED_TOWER_WEIGHTS = 8
_AROUND = ("default", "modules_to_save", "base_layer", "original_module")  # peft's, in names of weights
LARGEST_RANK = 10**5  # no adapter comes near; a damaged number must not fill the memory


def from_pretrained(
    model_class: type[PreTrainedModel],
    path: str,
    *,
    cut: Callable[[Any], None] | None = None,
    **arguments: Any,
) -> tuple[Any, dict[str, Any]]:
    """Call `model_class.from_pretrained`; returns the model and transformers' lists of missing, unexpected
    and mismatched keys, which `check_loading` judges.

    cut: removes parts of the model when it is built, before its weights are read; theirs are unexpected. On
    the device "meta" nothing is cut, and only names and shapes of the weights are read; stored_names in the
    lists are all of them. A state_dict, with a config, takes the place of the folder's weights. Raises
    CheckpointError for missing shards and damaged files.
    """
    if not files.weight_files(path):
        looked_for = ", ".join(files.WEIGHT_FILES + files.WEIGHT_INDEXES)
        raise CheckpointError(f"{path} holds no model weights; looked for {looked_for}.")
    check_generation_config(path)
    source = path if "state_dict" not in arguments else None
    stored_names: tuple[str, ...] = ()
    if arguments.get("device_map") in ("meta", {"": "meta"}):
        source, model_class, arguments = None, *_shapes_only(model_class, path, arguments)
        stored_names = tuple(arguments["state_dict"])
        cut = None
    built = model_class if cut is None else _cut_class(model_class, cut)
    try:
        # the random state stays as it was: ZeRO-3 draws initial values for weights that are then loaded
        with loading_report_held(), torch.random.fork_rng(devices=[]):
            # check_loading raises mismatches with the weight's name: transformers' own error has none
            model, info = built.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:  # the last: no CUDA here
        if "quantization_config" in arguments and "dispatched on the CPU or the disk" in str(error):
            raise CheckpointError(
                f"{path} does not fit into the devices' memory in 8 or 4 bit, and bitsandbytes cannot "
                f"offload; free memory or raise max_memory, try load_4bit, or load it without, which can "
                f"offload."
            ) from error
        files.load_weights(path, shapes_only=True)  # names the file, if one of them is the reason
        raise CheckpointError(f"The weights of {path} cannot be loaded: {first_line(error)}") from error
    except Exception as error:
        if isinstance(error, TypeError) and "keyword argument" in str(error):
            raise  # of the caller, not of the folder
        if type(error).__name__ in ("SafetensorError", "UnpicklingError"):
            files.load_weights(path, shapes_only=True)
        raise CheckpointError(
            f"{path} cannot be loaded ({type(error).__name__}: {reason_of(error)}); compare its "
            f"{files.CONFIG_FILE} with the original's, or copy the folder again."
        ) from error
    if cut is not None:
        model.__class__ = model_class
    return model, {**info, "stored_names": stored_names}


def _cut_class(model_class: type[PreTrainedModel], cut: Callable[[Any], None]) -> type[PreTrainedModel]:
    """Return a class whose models are cut at the end of their construction."""
    build = cast("Callable[..., None]", model_class.__init__)

    def __init__(self: PreTrainedModel, *args: object, **kwargs: object) -> None:  # noqa: N807
        build(self, *args, **kwargs)
        cut(self)

    names = {"__init__": __init__, "__module__": model_class.__module__, "__doc__": model_class.__doc__}
    return type(model_class.__name__, (model_class,), names)


def _shapes_only(
    model_class: type[PreTrainedModel], path: str, arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return class and arguments of a `from_pretrained` that gets weights without values from here."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = arguments.get("config")
    if config is None:
        config = (getattr(model_class, "config_class", None) or AutoConfig).from_pretrained(path)
    if not hasattr(model_class, "config_class"):  # AutoModelForCausalLM wants a path to choose by
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    shapes = {"state_dict": files.load_weights(path, shapes_only=True), "device_map": {"": "meta"}}
    return model_class, {**arguments, **shapes, "config": config}


def load_tower(
    model: LlavaModel, info: dict[str, Any], path: str, exempt: Exempt | None = None, *, whole: bool = True
) -> None:
    """Load the vision tower: kept if the checkpoint brought it, else from its own files.

    whole: False leaves out the layers behind the selected one until something asks for them.
    """
    tower = model.get_vision_tower()
    missing = [
        name for name in info["missing_keys"] if files.is_tower_key(name) and not files.is_recomputed(name)
    ]
    if tower.is_loaded and missing:
        stored = sum(1 for _ in tower.vision_tower.parameters()) - len(missing)
        if stored > 0:
            raise CheckpointError(
                f"{path} holds only {stored} of the vision tower's weights; missing: "
                f"{some_of(sorted(missing))}."
            )
        logger.info("%s holds no tower weights; they are read from %s", path, tower.vision_tower_name)
        tower.forget_weights()
    was_loaded = tower.is_loaded
    on_meta = model.device.type == "meta"
    tower.load_model(device_map="meta" if on_meta else None, whole=whole or on_meta)
    note(exempt, TOWER_REST, getattr(tower, "not_of_the_tower", ()))  # towers of other projects lack it
    note(exempt, TOWER_BEHIND, getattr(tower, "unread", ()))
    tower.requires_grad_(False)  # from_pretrained makes every weight trainable
    stored_names = sorted(name for name in info["unexpected_keys"] if files.is_tower_key(name))
    if stored_names and not was_loaded and model.device.type != "meta":
        _compare_stored_tower(tower, stored_names, path)


def _compare_stored_tower(tower: Tower, names: list[str], path: str) -> None:
    """Warn where a checkpoint's copy of the tower, which is not used, differs from the tower's own files.

    A few weights spread over the tower tell: training changes all of them.
    """
    own = {
        name.removeprefix("vision_model."): value for name, value in tower.vision_tower.named_parameters()
    }  # of the layers that are there
    short = {name: name.split("vision_tower.", 2)[-1].removeprefix("vision_model.") for name in names}
    names = [name for name in names if short[name] in own]
    chosen = names[:: max(1, len(names) // COMPARED_TOWER_WEIGHTS)][:COMPARED_TOWER_WEIGHTS]
    differs = []
    for file in files.weight_files(path) if chosen else ():
        for name, value in files.read_tensors(file, only=chosen).items():
            if name in chosen and not torch.equal(own[short[name]].to(value), value):
                differs.append(name)
    if differs:
        logger.warning(
            "%s holds weights of a vision tower that differ from those of %s (%d of %d compared) and are not "
            "used; if that tower was trained, set unfreeze_mm_vision_tower to true in its config.json",
            path, tower.vision_tower_name, len(differs), len(chosen),
        )  # fmt: skip
    else:
        logger.info(
            "%s holds a copy of the vision tower %s, which is not used", path, tower.vision_tower_name
        )


def place_tower(model: LlavaModel, dtype: torch.dtype | None) -> None:
    """Move the tower to the device of the projector's output, and to `dtype` unless that is None."""
    reference = next(model.get_model().mm_projector.parameters(), model.get_input_embeddings().weight)
    model.get_vision_tower().to(device=reference.device, dtype=dtype)


def fill_projector(model: LlavaModel, path: str, exempt: Exempt | None = None) -> None:
    """Fill projector (and embeddings, if stored) from the `mm_projector.bin` of a stage-1 folder."""
    file = files.find_file(path, files.PROJECTOR_FILE)
    if file is None:
        raise CheckpointError(f"{path} has no {files.PROJECTOR_FILE}.")
    weights = files.read_tensors(file, shapes_only=model.device.type == "meta")
    model.get_model().load_projector(weights, str(file))
    rest = {name: value for name, value in weights.items() if not any(part in name for part in BROUGHT_LATER)}
    _load_by_name(model, rest, str(file))
    if getattr(model.get_model(), "image_newline", None) is not None:
        _require(["image_newline"], weights, str(file))
    else:
        note(exempt, NEWLINE, [name for name in weights if name.endswith("image_newline")])


def load_non_lora(
    model: LlavaModel, path: str, *, projector_missing: bool, exempt: Exempt | None = None
) -> None:
    """Load `non_lora_trainables.bin`, what was trained beside the adapter, into the base model."""
    file = files.find_file(path, files.NON_LORA_FILE)
    if file is None:
        if projector_missing and not _adapter_brings_projector(model, path):
            raise CheckpointError(
                f"{path} has no {files.NON_LORA_FILE}, and its base has no projector; copy the file that "
                f"training wrote."
            )
        return
    shapes_only = model.device.type == "meta"
    weights = files.strip_adapter_prefix(files.read_tensors(file, shapes_only=shapes_only))
    if projector_missing:
        _require(_brought_later(model), weights, str(file))
    rows = {name: weights.pop(name) for name in list(weights) if name.startswith(STORED_ROWS)}
    note(exempt, NEW_ROWS, rows)
    _load_by_name(model, weights, str(file))
    if not shapes_only:
        set_new_token_rows(model, rows, str(file))


def _adapter_brings_projector(model: LlavaModel, path: str) -> bool:
    """Tell whether an adapter holds the projector itself (PEFT's modules_to_save). Raises for half a one."""
    weights = _adapter_weights(path, shapes_only=True)
    brought = {name: value for name, value in weights.items() if any(part in name for part in BROUGHT_LATER)}
    if brought:
        _require(_brought_later(model), brought, path)
    return bool(brought)


def _brought_later(model: LlavaModel) -> list[str]:
    """Name the weights of projector and image_newline."""
    return [name for name, _ in model.named_parameters() if any(part in name for part in BROUGHT_LATER)]


def _require(needed: list[str], weights: dict[str, torch.Tensor], source: str) -> None:
    missing = [name for name in needed if not any(stored.endswith(name) for stored in weights)]
    if missing:
        raise CheckpointError(f"{source} lacks {some_of(missing)}; it would be random.")


def _load_by_name(model: LlavaModel, weights: dict[str, torch.Tensor], source: str) -> None:
    places: Mapping[str, torch.Tensor] = dict(model.named_parameters())
    if not weights.keys() <= places.keys():
        places = model.state_dict()  # also buffers, and layers of the tower that are read when asked for
    unknown = sorted(name for name in weights if name not in places)
    if unknown:
        raise CheckpointError(f"{source} has weights that the model has no place for: {some_of(unknown)}.")
    wrong = [name for name, value in weights.items() if value.shape != places[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{source}: {name} has shape {tuple(weights[name].shape)}, the model "
            f"{tuple(places[name].shape)}; "
            f"is this the right base model?"
        )
    model.load_state_dict(weights, strict=False)


def merge_adapter(model: CausalModel, path: str) -> Any:
    """Load the PEFT adapter of `path` onto the model and merge it; returns the plain model.

    Raises CheckpointError when the adapter and the model do not cover the same modules, and for kinds of
    adapters that do not become a part of the weights.
    """
    wrapped = attach_adapter(model, path)
    try:
        return wrapped.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError) as error:  # NotImplementedError is one of the second
        kind = wrapped.peft_config["default"].peft_type.value
        raise CheckpointError(
            f"The adapter in {path} is of the kind {kind} and cannot be merged into weights "
            f"({first_line(error)}); expected LORA on linear layers or embeddings."
        ) from error


def attach_adapter(model: CausalModel, path: str) -> Any:
    """Put the PEFT adapter of `path` on the model, as PEFT's wrapper of it. Raises as `merge_adapter`."""
    shapes_only = model.device.type == "meta"
    weights = _adapter_weights(path, shapes_only=shapes_only)
    stored = {_adapter_name(name): value.shape for name, value in weights.items()}
    adapted = {name.split(".lora_")[0] for name in stored if ".lora_" in name}
    modules = {name for name, _ in model.named_modules()}
    replaced = {name for name in weights if ".lora_" not in name}  # PEFT's modules_to_save
    if any(files.is_tower_key(name) for name in replaced | (adapted - modules)):
        model.state_dict()  # reads layers of the tower that are there only when they are asked for
        modules = {name for name, _ in model.named_modules()}
    unknown = sorted(adapted - modules)
    if unknown:
        raise CheckpointError(
            f"The adapter in {path} is for modules that the base lacks: {some_of(unknown)}."
        )
    peft = import_optional("peft", needed_for="loading a LoRA adapter", install="peft")
    _check_adapter_config(peft, path)
    with explained(path, files.ADAPTER_CONFIG_FILE):
        config = peft.PeftConfig.from_pretrained(path)
    if config.is_prompt_learning or not hasattr(config, "exclude_modules"):
        raise CheckpointError(
            f"The adapter in {path} is of the kind {config.peft_type.value}, which cannot be merged into "
            "weights; expected LORA."
        )
    module = cast("torch.nn.Module", model)
    own = {_adapter_name(name) for name, _ in (*module.named_parameters(), *module.named_buffers())}
    has_tower = any(files.is_tower_key(name) for name in modules)
    if has_tower and not config.exclude_modules and not any(files.is_tower_key(name) for name in adapted):
        # CLIP has layers called q_proj as well; peft would give them adapters of their own, then miss them
        config.exclude_modules = r".*\bvision_tower\..*"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error below
        with explained(path, files.ADAPTER_CONFIG_FILE):
            if shapes_only:
                wrapped = peft.PeftModel(model, config, low_cpu_mem_usage=True)
            else:
                with reading_held():
                    wrapped = _filled_adapter(peft, model, path, config)
    _compare_adapter(wrapped, stored, own, path)
    return wrapped


def _compare_adapter(
    wrapped: torch.nn.Module, stored: Mapping[str, torch.Size], own: set[str], path: str
) -> None:
    """Raise CheckpointError unless an adapter's file holds what its config makes, and nothing else.

    stored: the file's names and shapes. own: names of the model's own weights, which it may replace.
    """
    places = {
        _adapter_name(name): value.shape
        for name, value in wrapped.named_parameters()
        if ".modules_to_save." in name or (".base_layer." not in name and _adapter_name(name) not in own)
        if not name.endswith(".ranknum.default")  # AdaLoRA's, which peft fills in
    }
    if missing := sorted(set(places) - set(stored)):
        raise CheckpointError(f"The adapter in {path} lacks {count_of(missing)}: {some_of(missing)}.")
    if left := sorted(set(stored) - set(places) - own):
        raise CheckpointError(
            f"The adapter in {path} has {count_of(left)} that its {files.ADAPTER_CONFIG_FILE} has no place "
            f"for: {some_of(left)}; copy both files again from one folder."
        )
    if other := [name for name in places if places[name] != stored[name]]:
        raise CheckpointError(
            f"The adapter in {path} does not fit its base: {other[0]} has {tuple(stored[other[0]])}, "
            f"expected {tuple(places[other[0]])}."
        )


def _check_adapter_config(peft: ModuleType, path: str) -> None:
    """Raise CheckpointError for an `adapter_config.json` that names no kind of adapter that peft knows."""
    file = files.find_file(path, files.ADAPTER_CONFIG_FILE)
    content = files.read_json(file) if file else {}
    kind, rank = content.get("peft_type"), content.get("r", 8)
    known = [str(one.value) for one in peft.PeftType]
    if kind not in known:
        raise CheckpointError(
            f"{file or path} has peft_type {shown(kind)}; expected 'LORA', or another kind that peft "
            f"{peft.__version__} knows. Copy it again from the folder that training wrote."
        )
    least = 1 if "LORA" in str(kind) else 0  # OFT has a rank or a size of blocks, the other is 0
    if isinstance(rank, bool) or not isinstance(rank, int) or not least <= rank <= LARGEST_RANK:
        raise CheckpointError(
            f"{file} has r {shown(rank)}; expected the rank of its weights, from 1 to {LARGEST_RANK:,}."
        )


def _filled_adapter(peft: ModuleType, model: CausalModel, path: str, config: PeftConfig) -> Any:
    try:
        return peft.PeftModel.from_pretrained(model, path, config=config)
    except RuntimeError as error:  # torch's list of shapes
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"The adapter in {path} does not fit its base: {reason}") from error


def _adapter_name(name: str) -> str:
    """Name of an adapter's weight without what peft puts around it in memory."""
    parts = name.removeprefix("base_model.model.").removesuffix(".weight").split(".")
    return ".".join(part for part in parts if part not in _AROUND)


def _adapter_weights(path: str, *, shapes_only: bool) -> dict[str, torch.Tensor]:
    for name in files.ADAPTER_FILES:
        file = files.find_file(path, name)
        if file is not None:
            return files.read_tensors(file, shapes_only=shapes_only)
    raise CheckpointError(
        f"{path} has {files.ADAPTER_CONFIG_FILE} but none of {', '.join(files.ADAPTER_FILES)}."
    )
