"""What training writes: weights gathered from all ranks, stage 1 folders, adapter folders, the loss curve."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava.atomic import atomic_file
from llava.model.checkpoints.files import (
    NON_LORA_FILE,
    PROJECTOR_FILE,
    CheckpointError,
    named_part,
    read_config,
    read_tensors,
    save_tensors,
)
from llava.model.checkpoints.gather import full_values
from llava.model.checkpoints.token_rows import STORED_ROWS, new_token_rows, set_new_token_rows
from llava.train.checkpointing.folders import (
    PREFIX,
    STATE_FILE,
    commit,
    explained_failure,
    publish,
    rotate,
    staging_folder,
    start_staging,
)
from llava.train.checkpointing.loss_curve import LOSS_CURVE_FILE, draw_loss_curve
from llava.train.checkpointing.manifest import write_manifest
from llava.train.plan import RunPlan, plan_of

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from transformers import PreTrainedConfig, PreTrainedModel, Trainer

logger = logging.getLogger(__name__)

NamedParams = Iterable[tuple[str, torch.Tensor]]

PROJECTOR_KEYS = ("mm_projector", "vision_resampler", "image_newline")
EMBEDDING_KEYS = ("embed_tokens", "embed_in")


# ---- gathering ----


def maybe_zero_3(param: torch.Tensor, ignore_status: bool = False, name: str | None = None) -> torch.Tensor:
    """Return a parameter's full values on the CPU, gathered from all ranks if ZeRO-3 or FSDP2 has split it.

    `ignore_status` and `name` are accepted because callers of the reference pass them.
    """
    return full_values(param)


def _gathered(named: NamedParams) -> dict[str, torch.Tensor]:
    return {name: maybe_zero_3(param) for name, param in named}


def get_mm_adapter_state_maybe_zero_3(
    named_params: NamedParams, keys_to_match: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Gather the parameters whose name contains one of `keys_to_match`."""
    return _gathered(named_part(named_params, keys_to_match))


def get_peft_state_maybe_zero_3(named_params: NamedParams, bias: str) -> dict[str, torch.Tensor]:
    """Gather what a PEFT adapter consists of.

    bias: "none" (adapters only), "all" (every bias of the model), or "lora_only" (biases of the layers with
    an adapter). Raises ValueError for anything else.
    """
    named = dict(named_params)
    adapters = {name for name in named if "lora_" in name}
    if bias == "none":
        wanted = adapters
    elif bias == "all":
        wanted = adapters | {name for name in named if "bias" in name}
    elif bias == "lora_only":
        # "x.q_proj.lora_A.default.weight" belongs to "x.q_proj", whose bias is "x.q_proj.base_layer.bias"
        layers = {name.split(".lora_")[0] for name in adapters}
        ends = (".bias", ".base_layer.bias")
        wanted = adapters | {
            name for name in named if any(name == layer + end for layer in layers for end in ends)
        }
    else:
        raise ValueError(f"lora_bias is {bias!r}; expected none, all or lora_only")
    return _gathered((name, param) for name, param in named.items() if name in wanted)


def get_peft_state_non_lora_maybe_zero_3(
    named_params: NamedParams, require_grad_only: bool = True
) -> dict[str, torch.Tensor]:
    """Gather what trains beside the adapters (the projector), or all that is beside them."""
    return _gathered(
        (name, param)
        for name, param in named_params
        if "lora_" not in name and (param.requires_grad or not require_grad_only)
    )


# ---- folders ----


def save_projector(trainer: Trainer, folder: str | Path, file: str | Path | None = None) -> None:
    """Write a stage 1 folder: config.json and mm_projector.bin (or `file` for the projector).

    With start and end tokens the input embeddings go into the same file. All ranks have to call this.
    """
    keys = PROJECTOR_KEYS + (EMBEDDING_KEYS if plan_of(trainer).use_im_start_end else ())
    weights = get_mm_adapter_state_maybe_zero_3(trainer.model.named_parameters(), keys)
    if trainer.args.should_save:
        Path(folder).mkdir(parents=True, exist_ok=True)
        trainer.model.config.save_pretrained(folder)
        save_tensors(weights, file or Path(folder) / PROJECTOR_FILE)


def save_beside_lora(model: PreTrainedModel, folder: str | Path, *, should_save: bool) -> None:
    """Write what belongs to an adapter beside it: config.json and non_lora_trainables.bin.

    The projector is among them also where it is frozen: the base need not have it. All ranks have to call
    this; the one with `should_save` writes.
    """
    weights = get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
    weights |= get_mm_adapter_state_maybe_zero_3(model.named_parameters(), PROJECTOR_KEYS)
    weights |= new_token_rows(model, _n_new_tokens(model.config))
    if should_save:
        model.config.save_pretrained(folder)
        save_tensors(weights, Path(folder) / NON_LORA_FILE)


def _n_new_tokens(config: PreTrainedConfig) -> int:
    """Count the tokens that training added to its base; 0, with a message, if the base is not found."""
    try:
        base = read_config(config.name_or_path)
    except CheckpointError as error:
        logger.info("rows of new tokens are not saved with the adapter: %s", error)
        return 0
    return config.vocab_size - (base.get("vocab_size") or config.vocab_size)


def save_lora(model: PreTrainedModel, folder: str | Path, bias: str, *, should_save: bool) -> None:
    """Write an adapter folder: adapter_model, adapter_config.json, config.json, non_lora_trainables.bin.

    All ranks have to call this; the one with `should_save` writes.
    """
    adapter = get_peft_state_maybe_zero_3(model.named_parameters(), bias)
    if should_save:
        model.save_pretrained(folder, state_dict=adapter)
    save_beside_lora(model, folder, should_save=should_save)


def load_trained(model: PreTrainedModel, file: Path) -> None:
    """Load weights that a checkpoint holds beside or instead of the whole model. Raises CheckpointError."""
    weights = read_tensors(file)
    rows = {name: weights.pop(name) for name in list(weights) if name.startswith(STORED_ROWS)}
    set_new_token_rows(model, rows, str(file))
    params = dict(model.named_parameters())
    unknown = [
        name for name, value in weights.items() if name not in params or params[name].shape != value.shape
    ]
    if unknown:
        raise CheckpointError(
            f"{file} has weights that this model has no place for: {', '.join(unknown[:4])}"
        )
    with torch.no_grad():
        for name, value in weights.items():
            params[name].copy_(_split_like(value, params[name]))


def _split_like(value: torch.Tensor, param: Any) -> torch.Tensor:
    """Return a full value as it is split over the processes by FSDP2, if the parameter is."""
    if not hasattr(param, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(param.device), param.device_mesh, param.placements)


# ---- checkpoints while training ----


def save_checkpoint(trainer: Trainer, write: Callable[[], None], run_dir: Path) -> None:
    """Write checkpoint-N of the present step whole, or not at all; all ranks call this.

    write: transformers' own saving, which writes below `trainer.staging`. Then older checkpoints are rotated
    out. Raises CheckpointError when the disk does not take it; older checkpoints stay as they are.
    """
    args = trainer.args
    target = run_dir / f"{PREFIX}{trainer.state.global_step}"
    staging = staging_folder(target)
    staged = staging / target.name
    if args.should_save:
        with explained_failure(target.name, run_dir, staging):
            start_staging(staging)
    trainer.accelerator.wait_for_everyone()
    with explained_failure(target.name, run_dir, staging):
        with _redirected(trainer, staging):
            write()
        staged.mkdir(exist_ok=True)  # on a machine of its own disk
        if args.should_save:
            _complete(trainer, staged, target)
        trainer.run_state.save(staged)
    trainer.accelerator.wait_for_everyone()
    # of machines that share a disk the first one gives the name; on disks of their own each does
    if args.should_save:
        with explained_failure(target.name, run_dir, staging):
            commit(staged, target)
    trainer.accelerator.wait_for_everyone()
    if args.local_process_index == 0 and staged.is_dir():
        commit(staged, target)
    if args.should_save:
        best = trainer.state.best_model_checkpoint
        rotate(run_dir, args.save_total_limit, best=best, thin=trainer.trains_projector_only)
    trainer.accelerator.wait_for_everyone()


@contextlib.contextmanager
def _redirected(trainer: Trainer, staging: Path) -> Iterator[None]:
    """Let transformers write below `staging`, without rotating or uploading."""
    args = trainer.args
    before = args.save_total_limit, args.push_to_hub
    trainer.staging, args.save_total_limit, args.push_to_hub = staging, None, False
    try:
        yield
    finally:
        trainer.staging = None
        args.save_total_limit, args.push_to_hub = before


def load_projector(model: PreTrainedModel, folder: Path) -> None:
    """Load projector and image_newline of a stage 1 checkpoint, also into weights that ZeRO-3 has split."""
    file = folder / PROJECTOR_FILE
    model.get_model().load_projector(read_tensors(file), str(file))


def leave_out_frozen(engine: DeepSpeedEngine) -> None:
    """Let a DeepSpeed engine save and load only weights that train; transformers does it for adapters only.

    Otherwise each checkpoint of stage 1 would hold the whole LLM.
    """
    save, load = engine.save_checkpoint, engine.load_checkpoint

    def save_trained(*args: object, **kwargs: object) -> Any:
        return save(*args, **{**kwargs, "exclude_frozen_parameters": True})

    def load_what_is_there(*args: object, **kwargs: object) -> Any:
        return load(*args, **{**kwargs, "load_module_strict": False})

    engine.save_checkpoint, engine.load_checkpoint = save_trained, load_what_is_there


def _complete(trainer: Trainer, staged: Path, target: Path) -> None:
    """Add what transformers leaves out: tokenizer, image processor, manifest; name the best by its place."""
    if trainer.processing_class is not None:
        trainer.processing_class.save_pretrained(staged)
    model = trainer.accelerator.unwrap_model(trainer.model)
    tower = model.get_vision_tower() if hasattr(model, "get_vision_tower") else None
    if tower is not None:
        tower.image_processor.save_pretrained(staged)
    if trainer.manifest:
        write_manifest(trainer.manifest, staged)
    state = trainer.state
    if state.best_global_step:
        best = target.with_name(f"{PREFIX}{state.best_global_step}")
        if best == target or best.is_dir():
            state.best_model_checkpoint = str(best)
            state.save_to_json(str(staged / STATE_FILE))


# ---- the final model ----


@contextlib.contextmanager
def whole_output(trainer: Trainer, output_dir: str | Path) -> Iterator[Path]:
    """Give a folder to write a model to; its files move to `output_dir` when all are written.

    All ranks have to call this. Raises CheckpointError when the disk does not take the model.
    """
    target = Path(output_dir)
    staging = target / "tmp-final"
    with explained_failure("the model", target, staging):
        if trainer.args.should_save:
            start_staging(staging)
        trainer.accelerator.wait_for_everyone()
        yield staging
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            publish(staging, target)
        trainer.accelerator.wait_for_everyone()


def safe_save_model_for_hf_trainer(trainer: Trainer, output_dir: str) -> None:
    """Write the final model: the projector alone after stage 1, otherwise everything.

    As in the reference, an output folder that is itself named checkpoint-* gets its projector beside it, in
    mm_projector/checkpoint-*.bin.
    """
    with whole_output(trainer, output_dir) as folder:
        if plan_of(trainer).stage != "projector":
            trainer.save_model(str(folder))
            return
        final = Path(output_dir)
        beside = None
        if final.name.startswith(PREFIX):
            beside = final.parent / "mm_projector" / f"{final.name}.bin"
        save_projector(trainer, folder, beside)


def save_trained_model(trainer: Trainer, plan: RunPlan, output_dir: str) -> None:
    """Write the trained model in the reference's layout, the trainer's state and the loss curve."""
    model = trainer.model
    model.config.use_cache = True
    should_save = trainer.args.should_save
    if plan.stage == "adapters":
        with whole_output(trainer, output_dir) as folder:
            save_lora(model, folder, plan.lora_bias, should_save=should_save)
    else:
        safe_save_model_for_hf_trainer(trainer, output_dir)
    if should_save:
        _save_state(trainer, Path(output_dir))
        try:
            draw_loss_curve(trainer.state.log_history, Path(output_dir) / LOSS_CURVE_FILE)
        except OSError as error:  # the model is written; a plot is not worth failing for
            logger.warning("no loss curve was written: %s", error)


def _save_state(trainer: Trainer, output_dir: Path) -> None:
    """Write the course of the training beside the model."""
    with explained_failure(STATE_FILE, output_dir), atomic_file(output_dir / STATE_FILE) as scratch:
        trainer.state.save_to_json(str(scratch))
