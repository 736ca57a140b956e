"""What training writes: weights gathered from all ranks, stage 1 folders, adapter folders, the loss curve."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from llava.model.checkpoint import (
    NON_LORA_FILE,
    PROJECTOR_FILE,
    CheckpointError,
    named_part,
    read_tensors,
    save_tensors,
)
from llava.model.sharding import full_values

logger = logging.getLogger(__name__)

NamedParams = Iterable[tuple[str, torch.Tensor]]

PROJECTOR_KEYS = ("mm_projector", "vision_resampler", "image_newline")
EMBEDDING_KEYS = ("embed_tokens", "embed_in")
LOSS_CURVE_FILE = "loss_curve.png"


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


def save_projector(trainer: Any, folder: str | Path, file: str | Path | None = None) -> None:
    """Write a stage 1 folder: config.json and mm_projector.bin (or `file` for the projector).

    With start and end tokens the input embeddings go into the same file. All ranks have to call this.
    """
    keys = PROJECTOR_KEYS + (EMBEDDING_KEYS if getattr(trainer.args, "use_im_start_end", False) else ())
    weights = get_mm_adapter_state_maybe_zero_3(trainer.model.named_parameters(), keys)
    if trainer.args.should_save:
        Path(folder).mkdir(parents=True, exist_ok=True)
        trainer.model.config.save_pretrained(folder)
        save_tensors(weights, file or Path(folder) / PROJECTOR_FILE)


def save_beside_lora(model: Any, folder: str | Path, *, should_save: bool) -> None:
    """Write what belongs to an adapter beside it: config.json and non_lora_trainables.bin.

    All ranks have to call this; the one with `should_save` writes.
    """
    weights = get_peft_state_non_lora_maybe_zero_3(model.named_parameters())
    if should_save:
        model.config.save_pretrained(folder)
        save_tensors(weights, Path(folder) / NON_LORA_FILE)


def save_lora(model: Any, folder: str | Path, bias: str, *, should_save: bool) -> None:
    """Write an adapter folder: adapter_model, adapter_config.json, config.json, non_lora_trainables.bin.

    All ranks have to call this; the one with `should_save` writes.
    """
    adapter = get_peft_state_maybe_zero_3(model.named_parameters(), bias)
    if should_save:
        model.save_pretrained(folder, state_dict=adapter)
    save_beside_lora(model, folder, should_save=should_save)


def load_trained(model: Any, file: Path) -> None:
    """Load weights that a checkpoint holds beside or instead of the whole model. Raises CheckpointError."""
    weights = read_tensors(file)
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:
        raise CheckpointError(
            f"{file} has weights that this model has no place for: {', '.join(unknown[:4])}"
        )


def safe_save_model_for_hf_trainer(trainer: Any, output_dir: str) -> None:
    """Write the final model: the projector alone after stage 1, otherwise everything.

    As in the reference, an output folder that is itself named checkpoint-* gets its projector beside it, in
    mm_projector/checkpoint-*.bin.
    """
    if getattr(trainer.args, "tune_mm_mlp_adapter", False):
        folder = Path(output_dir)
        beside = None
        if folder.name.startswith("checkpoint-"):
            beside = folder.parent / "mm_projector" / f"{folder.name}.bin"
        save_projector(trainer, folder, beside)
        return
    trainer.save_model(output_dir)


def save_trained_model(trainer: Any, training_args: Any) -> None:
    """Write the trained model in the reference's layout for this kind of run, and the loss curve."""
    model = trainer.model
    model.config.use_cache = True
    if training_args.lora_enable:
        save_lora(
            model, training_args.output_dir, training_args.lora_bias, should_save=training_args.should_save
        )
    else:
        safe_save_model_for_hf_trainer(trainer, training_args.output_dir)
    if training_args.should_save:
        try:
            draw_loss_curve(trainer.state.log_history, Path(training_args.output_dir) / LOSS_CURVE_FILE)
        except OSError as error:  # the model is written; a picture is not worth failing for
            logger.warning("no loss curve was written: %s", error)


# ---- the loss curve ----


def draw_loss_curve(log_history: Sequence[dict[str, Any]], file: Path) -> bool:
    """Draw loss over steps as a PNG; returns False, with a message, when that is not possible."""
    points = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    if not points:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no loss curve is drawn: matplotlib is not installed (pip install matplotlib)")
        return False
    steps, losses = zip(*points, strict=True)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    window = max(1, len(losses) // 50)
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="loss")
    if window > 1:
        axes.plot(steps, _running_mean(losses, window), color="tab:blue", label=f"mean of {window} entries")
    axes.set(xlabel="step", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
    logger.info("loss curve: %s", file)
    return True


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Average each value with up to `window - 1` values before it."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]
