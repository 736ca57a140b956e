"""RunPlan and DataSettings: what a run trains and what its samples are made of, frozen once it is parsed.

`adapted` is the one place that reads arguments of which it does not know the fields: those of projects that
call LLaVATrainer or make_supervised_data_module with argument classes of their own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import torch

from llava.protocols import ImageProcessor

if TYPE_CHECKING:
    from transformers import Trainer
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

logger = logging.getLogger(__name__)

Stage = Literal["projector", "adapters", "whole"]

# Parts with a flag for a learning rate of their own.
RATE_FLAGS = {"mm_projector": "mm_projector_lr", "vision_tower": "mm_vision_tower_lr"}


@dataclass(frozen=True)
class RunPlan:
    """What trains, at which rate and in which dtype; the fields are named as the flags they come from.

    The defaults are those of arguments that know nothing of a flag, not those of the command line.
    """

    # what trains
    freeze_backbone: bool = False
    tune_mm_mlp_adapter: bool = False
    freeze_mm_mlp_adapter: bool = False
    unfreeze_mm_vision_tower: bool = False
    mm_tunable_parts: str | None = None
    use_im_start_end: bool = False
    lora_enable: bool = False
    lora_r: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_bias: str = "none"
    # at which rate
    learning_rate: float = 5e-5
    mm_projector_lr: float | None = None
    mm_vision_tower_lr: float | None = None
    optim: str = "adamw_torch"
    # in which dtype, where
    bf16: bool = False
    fp16: bool = False
    bits: int = 16
    double_quant: bool = True
    quant_type: str = "nf4"
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    world_size: int = 1
    deepspeed: str | dict[str, Any] | None = None  # a file, a dict, or nothing
    hf_deepspeed_config: HfTrainerDeepSpeedConfig | None = None  # as transformers has read it
    fsdp: object = None
    fsdp_plugin_args: dict[str, Any] | None = None
    # how a step goes
    seed: int = 42
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    gradient_checkpointing_kwargs: dict[str, Any] | None = None
    activation_checkpointing: bool | None = False  # its name in newer transformers
    activation_checkpointing_kwargs: dict[str, Any] | None = None
    packing: bool = False
    group_by_modality_length: bool = False
    group_by_length: bool = False
    train_sampling_strategy: str = ""
    on_nonfinite: str = "error"
    max_lost_samples: float = 1.0

    @property
    def stage(self) -> Stage:
        """What is written: the projector alone, adapters, or the whole model (as with a trained tower)."""
        if self.tune_mm_mlp_adapter and not self.unfreeze_mm_vision_tower:
            return "projector"
        return "adapters" if self.lora_enable else "whole"

    @property
    def groups_by_length(self) -> bool:
        """Whether batches have samples of like lengths, by the flag's old name or its new one."""
        return self.group_by_length or word_of(self.train_sampling_strategy) == "group_by_length"

    @property
    def checkpoints_activations(self) -> bool:
        """Whether activations are computed again in the backward pass instead of kept."""
        return bool(self.gradient_checkpointing or self.activation_checkpointing)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that matrix products are computed in."""
        if self.fp16:
            return torch.float16
        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype that the LLM's weights are held in.

        Frozen weights, and weights of which DeepSpeed keeps a float32 copy, are held in the compute dtype.
        Otherwise weights that train stay in float32 and products run under autocast: an AdamW step of 2e-5
        is lost in the rounding of bfloat16.
        """
        frozen = self.lora_enable or self.tune_mm_mlp_adapter or self.bits != 16
        return self.compute_dtype if frozen or self.deepspeed else torch.float32

    @property
    def trained_dtype(self) -> torch.dtype:
        """The dtype of weights that train: DeepSpeed keeps float32 copies of its own."""
        return self.compute_dtype if self.deepspeed else torch.float32

    @property
    def tower_dtype(self) -> torch.dtype:
        """The dtype of a frozen vision tower: bfloat16 with --bf16, else float16 as in the reference.

        A CPU computes in float32, which is faster there and differs by rounding only.
        """
        if self.bf16:
            return torch.bfloat16
        return torch.float32 if self.device.type == "cpu" else torch.float16

    def own_rate(self, name: str) -> float | None:
        """Return the learning rate that a flag gives to the part a parameter belongs to; None without."""
        return next((vars(self)[flag] for part, flag in RATE_FLAGS.items() if part in name), None)


@dataclass(frozen=True)
class DataSettings:
    """What samples are made of, under the names that the reference gives to the fields of its data_args.

    The image processor and the tile grids are known when the tower is loaded, after the records are checked:
    a dataset's `with_settings` returns it with them.
    """

    data_path: str | None = None
    image_folder: str | None = None
    video_folder: str | None = None  # None: the image folder
    video_fps: float = 1.0
    frames_upbound: int = 0  # no limit
    force_sample: bool = False
    add_time_instruction: bool = False
    is_multimodal: bool = False
    mm_use_im_start_end: bool = False
    image_processor: ImageProcessor | None = None
    image_aspect_ratio: str | None = None
    image_grid_pinpoints: Any = None  # pairs of (width, height), or their text
    pads_several: bool = False  # of several images each is one padded square instead of tiles
    label_masks: str | None = None
    on_bad_sample: str = "error"
    allow_images_outside_folder: bool = False
    data_cache_dir: str | None = None
    streaming: bool = False
    shuffle_buffer: int = 1
    eval_data_path: str | None = None
    eval_split: float = 0.0
    # what an image adds to a sample's length when samples are grouped: the reference's number, or the tokens
    # that a projector makes of a tile where it makes fewer
    image_length: int = 128
    frame_length: int = 128  # the same of each frame of a video; the tokens that one has, once they are known

    @property
    def skips_bad_samples(self) -> bool:
        """Whether a sample that cannot be used is replaced instead of ending the run."""
        return self.on_bad_sample == "skip"


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Settings = TypeVar("Settings", bound=_Dataclass)


def adapted(kind: type[Settings], *arguments: object, **known: object) -> Settings:
    """Read settings from argument objects: each field from the first that has it, else its default.

    The objects may be of any class: those of llava.train.args, or a project's own that have fewer fields.
    What is `known` already goes before them. Settings of the kind come back as they are.
    """
    if len(arguments) == 1 and not known and isinstance(arguments[0], kind):
        return arguments[0]
    values = dict(known)
    for name in (field.name for field in fields(kind)):
        holder = next((one for one in arguments if hasattr(one, name)), None)
        if name not in values and holder is not None:
            values[name] = getattr(holder, name)
    return kind(**values)


def plan_of(trainer: Trainer) -> RunPlan:
    """Return the plan of a trainer; for another Trainer than ours, what its arguments say."""
    return trainer.plan if hasattr(trainer, "plan") else adapted(RunPlan, trainer.args)


def word_of(value: object) -> str:
    """Return a choice as the command line writes it; transformers holds some as enumerations."""
    return str(value.value if isinstance(value, Enum) else value)
