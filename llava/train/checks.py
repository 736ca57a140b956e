"""What is wrong with single flags, seen before anything is loaded: numbers, folders, files."""

from __future__ import annotations

import base64
import binascii
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from llava.atomic import obstacle
from llava.mm_utils import parse_grid_pinpoints
from llava.model.checkpoints.errors import CheckpointError, first_line
from llava.model.checkpoints.files import is_tower_key, load_weights, part_of, read_tensors, weight_files
from llava.model.multimodal.config import MultimodalConfig
from llava.model.multimodal.video import pooled_side
from llava.model.multimodal_encoder.image_processor import PROCESSOR_FILE
from llava.model.multimodal_encoder.published import processor_file
from llava.model.multimodal_encoder.registry import (
    build_tower,
    describe_tower,
    read_tower_config,
    split_name,
    tower_class,
)
from llava.model.multimodal_projector.registry import projected_tile
from llava.train.old_flags import read_json_flag
from llava.train.plan import RunPlan, adapted, word_of
from llava.utils import UserError, import_optional, shortened
from llava.video import MOST_FRAMES

logger = logging.getLogger(__name__)


class TowerFlags(Protocol):
    """The flags that a tower's files are looked at for."""

    model_name_or_path: str


@dataclass(frozen=True)
class Range:
    """The numbers a flag takes: from `low` (or above it) to `high` (or below it)."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low itself is out
    below: bool = False  # high itself is out
    whole: bool = False  # no fractions
    whole_from_1: bool = False  # below 1 a part of all steps, from there on a whole number

    def holds(self, value: float) -> bool:
        """Tell whether a number is finite and in the range."""
        if not math.isfinite(value):
            return False
        if value < self.low or (self.above and value == self.low):
            return False
        if value > self.high or (self.below and value == self.high):
            return False
        return not ((self.whole or (self.whole_from_1 and value > 1)) and value != int(value))

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        words = []
        if self.low > -math.inf:
            words.append(f"{'above' if self.above else 'from'} {_shown(self.low)}")
        if self.high < math.inf:
            words.append(f"{'below' if self.below else 'up to'} {_shown(self.high)}")
        if self.whole_from_1:
            words.append("(below 1: a part of all steps; above 1: whole)")
        return f"{kind} {' '.join(words)}" if words else "a finite number"


def _shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 10_000 else f"{number:g}"


_RATE = Range(0)
_COUNT = Range(1, whole=True)
_PART = Range(0, 1, below=True)

RANGES: dict[str, Range] = {
    "model_max_length": Range(1, 2**31 - 1, whole=True),
    "learning_rate": _RATE,
    "mm_projector_lr": _RATE,
    "mm_vision_tower_lr": _RATE,
    "weight_decay": _RATE,
    "adam_beta1": _PART,
    "adam_beta2": _PART,
    "adam_epsilon": _RATE,
    "max_grad_norm": _RATE,
    "lora_r": Range(1, 2**16, whole=True),
    "lora_alpha": Range(0, above=True),
    "lora_dropout": _PART,
    "dataloader_num_workers": Range(0, 1024, whole=True),
    "dataloader_prefetch_factor": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "num_train_epochs": Range(0),
    "warmup_steps": Range(0, whole_from_1=True),
    "warmup_ratio": _PART,
    "label_smoothing_factor": _PART,
    "neftune_noise_alpha": Range(0),
    "max_lost_samples": Range(0, 1),
    "shuffle_buffer": _COUNT,
    "eval_split": _PART,
    "mm_vision_resolution": _COUNT,
    "seed": Range(0, 2**32 - 1, whole=True),
}
# A strategy, and the number of steps that it reads.
STEPS = {"logging_strategy": "logging_steps", "save_strategy": "save_steps"}
_EVERY = Range(0, above=True, whole_from_1=True)
# Flags that are about another one: its name, and what has to be given.
NEEDS = {
    **{name: ("lora_enable", "--lora_enable True") for name in ("lora_r", "lora_alpha", "lora_dropout")},
    "lora_bias": ("lora_enable", "--lora_enable True"),
    "shuffle_buffer": ("streaming", "--streaming True"),
    "eval_steps": ("do_eval", "--eval_data_path or --eval_split"),
}
JSON_FLAGS = ("fsdp_config", "accelerator_config", "lr_scheduler_kwargs", "gradient_checkpointing_kwargs")


def check_numbers(values: Mapping[str, object]) -> None:
    """Refuse numbers that cannot be meant. values: flags to what was parsed; UserError names the flag."""
    for flag, allowed in RANGES.items():
        _check_number(flag, values.get(flag), allowed)
    for strategy, flag in STEPS.items():
        if str(values.get(strategy, "steps")).rpartition(".")[2].lower() == "steps":
            _check_number(flag, values.get(flag), _EVERY)
    for flag, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{flag} is {value}; expected a finite number")
    if values.get("dataloader_persistent_workers") and not values.get("dataloader_num_workers"):
        raise UserError("--dataloader_persistent_workers True needs --dataloader_num_workers above 0")
    max_steps = values.get("max_steps")
    if isinstance(max_steps, int) and (max_steps == 0 or max_steps < -1):
        raise UserError(
            f"--max_steps is {max_steps}, so nothing would be trained; expected more, or -1 for "
            "--num_train_epochs"
        )
    steps = max_steps if isinstance(max_steps, int) else -1
    if values.get("num_train_epochs") == 0 and steps <= 0:
        raise UserError(
            "--num_train_epochs is 0, so nothing would be trained; expected more, or --max_steps above 0"
        )


def _check_number(flag: str, value: object, allowed: Range) -> None:
    if isinstance(value, int | float) and not allowed.holds(value):
        raise UserError(f"--{flag} is {value}; expected {allowed}")


def check_json(values: Mapping[str, object]) -> None:
    """Refuse JSON files that are missing or damaged, and a DeepSpeed configuration that is."""
    for flag in JSON_FLAGS:
        value = values.get(flag)
        if isinstance(value, str):
            read_json_flag(flag, value)
    deepspeed = values.get("deepspeed")
    if isinstance(deepspeed, str) and not _is_base64_json(deepspeed):
        read_json_flag("deepspeed", deepspeed)


def _is_base64_json(text: str) -> bool:
    """Tell whether a text is JSON in base64, in which launchers hand a DeepSpeed configuration on."""
    if os.path.exists(text):
        return False
    try:
        return base64.urlsafe_b64decode(text).lstrip().startswith(b"{")
    except (binascii.Error, ValueError):
        return False


def check_output_dir(output_dir: str | None, *, writes: bool) -> None:
    """Refuse an output folder that is not named, or that cannot be made or written to."""
    if not output_dir:
        if writes:
            raise UserError("--output_dir is missing; name the folder that the trained model is written to")
        return
    if reason := obstacle(output_dir, folder=True, probe=writes):
        raise UserError(
            f"--output_dir {shortened(output_dir)} cannot be written: {reason}; name another folder"
        )


def check_choice(flag: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse a value that is none of those that a flag knows."""
    if value not in allowed:
        raise UserError(f"--{flag} is {value!r}; expected one of {', '.join(map(str, allowed))}")


def check_flag(check: Callable[..., object], *values: object) -> None:
    """Call a check of settings on values of flags, which are named as the settings are."""
    try:
        check(*values)
    except UserError as error:
        raise UserError(f"--{error}") from error


def check_sampling(frames: int, fps: float, *, always: bool) -> None:
    """Refuse flags with which no frames of a video can be chosen."""
    if not 0 <= frames <= MOST_FRAMES:
        raise UserError(f"--frames_upbound is {frames}; expected 0 (no limit) to {MOST_FRAMES}")
    if not 0 < fps < float("inf"):
        raise UserError(f"--video_fps is {fps}; expected a number of frames a second above 0")
    if always and not frames:
        raise UserError(
            "--force_sample True takes --frames_upbound frames of each video, and it is 0; give it"
        )


def check_grids(grids: str | None) -> None:
    """Refuse tile grids that cannot be read, or that are not pairs of positive numbers."""
    if grids is None:
        return
    try:
        pairs = parse_grid_pinpoints(grids)
    except UserError as error:
        raise UserError(f"--{error}") from error
    if any(edge <= 0 for pair in pairs for edge in pair):
        raise UserError(f"--image_grid_pinpoints is {grids}; expected positive pixels")


def check_projector_file(file: str | None, merge_type: str | None = None) -> None:
    """Refuse a projector file that is missing, unreadable or holds no projector.

    merge_type: --mm_patch_merge_type; a warning tells of a trained image_newline that it has no place for.
    """
    if file is None:
        return
    if not Path(file).is_file():
        raise UserError(f"--pretrain_mm_mlp_adapter {file} is no file; name the mm_projector.bin of stage 1")
    try:
        weights = read_tensors(file)
    except UserError as error:
        raise UserError(f"--pretrain_mm_mlp_adapter: {error}") from error
    if not part_of(weights, "mm_projector"):
        raise UserError(
            f"--pretrain_mm_mlp_adapter {file} holds no weights named mm_projector; name the "
            "mm_projector.bin of stage 1"
        )
    has_newline = any(name.endswith("image_newline") for name in weights)
    if has_newline and merge_type is not None and "unpad" not in merge_type:
        logger.warning("image_newline of %s is left out, --mm_patch_merge_type is %s", file, merge_type)


def check_vision_tower(tower: str | None) -> None:
    """Refuse a tower that is missing or of a kind that is unknown."""
    if tower is None:
        return
    if not tower:
        raise UserError('--vision_tower is ""; expected a CLIP folder or hub name, or no such flag')
    try:
        for one in split_name(tower) or [tower]:
            tower_class(read_tower_config(one), one)
    except UserError as error:
        raise UserError(f"--vision_tower: {error}") from error


def check_tower_files(model_args: TowerFlags) -> None:
    """Refuse a tower whose files are damaged or lack its weights, or that lacks the selected layer.

    Nothing large is read. A checkpoint that stores its tower needs no weights in the tower's own folder.
    """
    settings = MultimodalConfig.of(model_args)
    if settings.vision_tower is None:
        return
    stored = _stores_tower(model_args.model_name_or_path)
    try:
        for one in split_name(settings.vision_tower) or [settings.vision_tower]:
            alone = replace(settings, vision_tower=one, tower_in_checkpoint=True)
            with torch.device("meta"):
                tower = build_tower(alone, delay_load=True)
            check_flag(tower.layers_before, tower.select_layer)
            if processor_file(one, PROCESSOR_FILE):
                tower.image_processor  # noqa: B018
            if Path(one).is_dir() and not stored:
                load_weights(one, shapes_only=True)
    except CheckpointError as error:
        raise CheckpointError(f"--vision_tower: {error}") from error


def _stores_tower(path: str) -> bool:
    """Tell whether a folder that training starts from is a LLaVA with the weights of its tower.

    One that cannot be read may be: what is wrong with it is told when it is loaded.
    """
    if not Path(path).is_dir():
        return False
    try:
        names = load_weights(path, shapes_only=True) if weight_files(path) else ()
    except CheckpointError:
        return True
    return any(is_tower_key(name) for name in names)


def check_optimizer(args: TrainingArguments) -> None:
    """Refuse an optimizer whose package is missing, and a schedule that lacks settings or does not know them.

    What a DeepSpeed configuration chooses is not looked at.
    """
    deepspeed = adapted(RunPlan, args).hf_deepspeed_config
    chosen: dict[str, object] = {} if deepspeed is None else deepspeed.config
    if "optimizer" not in chosen:
        for one in (args.optim_args or "").replace(" ", "").split(","):
            if args.optim_args and "=" not in one:
                raise UserError(f"--optim_args is {args.optim_args!r}; expected NAME=VALUE,NAME=VALUE")
        try:
            Trainer.get_optimizer_cls_and_kwargs(args)
        except (ImportError, ValueError) as error:
            raise UserError(f"--optim {word_of(args.optim)}: {first_line(error)}") from error
    if "scheduler" in chosen:
        return
    kwargs = args.lr_scheduler_kwargs or {}
    assert isinstance(kwargs, dict)  # transformers has read it
    name, optimizer = args.lr_scheduler_type, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(
            name, optimizer, num_warmup_steps=1, num_training_steps=10, scheduler_specific_kwargs=dict(kwargs)
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--lr_scheduler_type {word_of(name)} does not work with --lr_scheduler_kwargs {kwargs}: "
            f"{first_line(error)}"
        ) from error


def check_compiling(args: TrainingArguments) -> None:
    """Refuse a backend or a mode that torch.compile does not know."""
    if not args.torch_compile:
        return
    backend, mode = args.torch_compile_backend, args.torch_compile_mode
    if backend is not None:
        known = [one.value.lower() for one in DynamoBackend]
        check_choice("torch_compile_backend", backend.lower(), known)
    if mode is not None:
        try:
            torch.compile(torch.nn.Identity(), backend=backend or "inductor", mode=mode)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"--torch_compile_mode is {mode!r}: {first_line(error)}") from error


def check_without_tower(args: TrainingArguments, *, sees: bool) -> None:
    """Refuse what transformers does for text alone, whose embeddings and logits have a row for each token."""
    if not sees:
        return
    for flag, value in {
        "label_smoothing_factor": args.label_smoothing_factor,
        "neftune_noise_alpha": args.neftune_noise_alpha,
    }.items():
        if value:
            raise UserError(f"--{flag} {value:g} works on text alone, not with --vision_tower; leave it out")


def warn_without_effect(given: Iterable[str], *arguments: object) -> None:
    """Tell of flags of the command line that nothing reads without another flag."""
    values = {name: value for one in arguments for name, value in vars(one).items()}
    for flag in sorted(NEEDS.keys() & set(given)):
        needed, told = NEEDS[flag]
        if not values[needed]:
            logger.warning("--%s %s has no effect without %s", flag, values[flag], told)
    if values["mm_projector_lr"] is not None and values["freeze_mm_mlp_adapter"]:
        logger.warning(
            "--mm_projector_lr %s has no effect, the projector is frozen", values["mm_projector_lr"]
        )


def check_empty(flags: Iterable[str], values: Mapping[str, object]) -> None:
    """Refuse names of files and folders that are empty, as of a variable that a shell script has not set."""
    for flag in flags:
        if isinstance(value := values.get(flag), str) and not value.strip():
            raise UserError(f'--{flag} is "{value}"; expected a name, or no such flag')


def check_reports(names: Iterable[str] | None) -> None:
    """Refuse a --report_to that transformers does not know, or whose package is missing."""
    packages = {"wandb": "wandb", "tensorboard": "tensorboard"}
    try:
        get_reporting_integration_callbacks(names)
    except ValueError as error:
        raise UserError(f"--report_to: {error}") from error
    for name in names or []:
        if name in packages:
            needed = f"--report_to {name} (drop it with --report_to none)"
            import_optional(packages[name], needed_for=needed, install=packages[name])


def check_projector(model_args: object) -> None:
    """Refuse a projector that is unknown, or that cannot take what the tower gives or the merge needs."""
    settings = MultimodalConfig.of(model_args)
    if settings.vision_tower is None:
        return
    try:
        projected_tile(settings, describe_tower(settings).tile_features)
    except UserError as error:
        raise UserError(f"--{error}" if str(error).startswith("mm_") else str(error)) from error


def check_frames(model_args: object) -> None:
    """Refuse features that cannot be pooled as the frames of a video are: they have to be a grid."""
    settings = MultimodalConfig.of(model_args)
    tile = projected_tile(settings, describe_tower(settings).tile_features)
    if not tile.side or tile.count != tile.side**2:
        raise UserError(
            f"the data has videos, whose frames are pooled as grids, and --mm_projector_type "
            f"{settings.projector_type} with --mm_vision_select_feature {settings.select_feature} gives "
            f"{tile.count} features that are none; expected such as mlp2x_gelu with patch"
        )
    if pooled_side(tile.side, settings) < 1:
        raise UserError(
            f"--mm_spatial_pool_stride is {settings.pool_stride}, and a frame of the data's videos has "
            f"{tile.side} x {tile.side} features; nothing would be left"
        )


def with_flag(message: str, values: Mapping[str, object]) -> str:
    """Put the flag in front of a message of transformers that calls it by its field's name, or its value."""
    message = " ".join(message.split())
    if any(f"--{flag}" in message for flag in values):
        return message
    named = [flag for flag in values if re.search(rf"(`|\b(?=\w*_)){flag}\b", message)]
    return f"--{named[0]} {values[named[0]]}: {message}" if named else message
