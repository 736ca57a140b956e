"""The command line of training: three argument classes that take every flag of the reference's scripts."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields

import torch
import transformers
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import OptimizerNames
from transformers.utils import is_torch_tf32_available

from llava._compat import parser_actions
from llava.arguments import ProgramParser, take_paths
from llava.model.language_model.family import KERNELS
from llava.model.multimodal.config import (
    SELECT_FEATURES,
    check_cap,
    check_merge_type,
    check_video_settings,
)
from llava.train.callbacks.tasks import EvalTaskArguments
from llava.train.checks import (
    check_choice,
    check_compiling,
    check_empty,
    check_flag,
    check_grids,
    check_json,
    check_numbers,
    check_optimizer,
    check_output_dir,
    check_reports,
    check_without_tower,
    warn_without_effect,
    with_flag,
)
from llava.train.data_args import DataArguments, explained
from llava.train.inherited import (
    choose_version,
    given_flags,
    inherit_from_projector,
    inherit_settings,
)
from llava.train.old_flags import FALSE, OLD_FLAGS_HELP, TRUE, translate_old_flags
from llava.train.plan import DataSettings, RunPlan, adapted, word_of
from llava.train.setup.attention import CHOICES as ATTENTION_CHOICES
from llava.train.setup.hub import check_hub
from llava.train.setup.liger import check_liger
from llava.train.tunable import spread_parts
from llava.utils import UserError

logger = logging.getLogger(__name__)

LORA_BIASES = ("none", "all", "lora_only")
BITS = (4, 8, 16)
QUANT_TYPES = ("nf4", "fp4")
NONFINITE_POLICIES = ("error", "skip")
EVAL_METRICS = tuple(f"{start}loss{of}" for start in ("", "eval_") for of in ("", "_text", "_image"))
TOKENS_SEEN = ("no", "all", "non_padding")
# Flags that name files and folders, or hub names in their place.
PATHS = (
    *("model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter", "cache_dir", "resume"),
    *(
        "data_path",
        "eval_data_path",
        "image_folder",
        "video_folder",
        "data_cache_dir",
        "resume_from_checkpoint",
    ),
    "eval_tasks_data",
    *("output_dir", "logging_dir", "deepspeed", "fsdp_config", "accelerator_config"),
)
# Of these an empty name means something, or has a sentence of its own.
NO_EMPTY = tuple({*PATHS} - {"vision_tower", "image_folder", "video_folder", "output_dir"})


@dataclass
class ModelArguments:
    """Which model is trained, and how its vision parts are built."""

    model_name_or_path: str = explained(
        "facebook/opt-125m", "Base LLM, or a LLaVA checkpoint to continue from"
    )
    version: str = explained("v0", "Conversation template; v0 also adds a [PAD] token")
    freeze_backbone: bool = explained(False, "Keep the layers of the LLM as they are (its lm_head trains)")
    tune_mm_mlp_adapter: bool = explained(False, "Stage 1: train the projector only")
    vision_tower: str | None = explained(None, "Folder or hub name, several joined by +; none: text only")
    mm_vision_select_layer: int | None = explained(-1, "Hidden layer of the tower whose features are used")
    pretrain_mm_mlp_adapter: str | None = explained(None, "mm_projector.bin of stage 1")
    mm_projector_type: str | None = explained("linear", "linear, mlpNx_gelu or another: docs/projectors.md")
    mm_use_im_start_end: bool = explained(False, "Put <im_start> and <im_end> round each image")
    mm_use_im_patch_token: bool = explained(True, "Add <im_patch> to the vocabulary")
    mm_patch_merge_type: str | None = explained(
        "flat", "flat, spatial or spatial_unpad, the latter two also with _nobase or _maxpool2x2"
    )
    mm_vision_select_feature: str | None = explained("patch", "patch, or cls_patch to keep the class token")
    mm_vision_resolution: int | None = explained(None, "Pixels that the tower gets, its config's by default")
    mm_spatial_pool_mode: str | None = explained(None, "How frames are pooled: bilinear, average or max")
    mm_spatial_pool_stride: int | None = explained(None, "Patches that are pooled to one, along an edge (2)")
    mm_newline_position: str | None = explained(
        None, "Where a video has newlines: grid, frame, one_token or no_token; docs/newer_llavas.md"
    )
    unfreeze_mm_vision_tower: bool = explained(False, "Train the vision tower as well")
    mm_tunable_parts: str | None = explained(
        None, "What trains, in LLaVA-NeXT's words: some of mm_vision_tower,mm_mlp_adapter,mm_language_model"
    )

    def __post_init__(self) -> None:
        check_choice("mm_vision_select_feature", self.mm_vision_select_feature, SELECT_FEATURES)
        check_flag(check_merge_type, self.mm_patch_merge_type)
        check_flag(check_video_settings, vars(self))


@dataclass
class TrainingArguments(transformers.TrainingArguments, EvalTaskArguments):
    """Training arguments of transformers and of the reference, and names that transformers has dropped."""

    cache_dir: str | None = explained(None, "Where files from the hub are kept")
    optim: str = explained("adamw_torch", "Optimizer")
    # the parser of transformers takes true and false only, though the field knows these
    include_num_input_tokens_seen: str = field(
        default="no",
        metadata={
            "help": f"Log how many tokens were read: {', '.join(TOKENS_SEEN)}",
            "nargs": "?",
            "const": "all",
        },
    )
    remove_unused_columns: bool = explained(False, "Keep false: the collator needs every column")
    freeze_mm_mlp_adapter: bool = explained(False, "Do not train the projector")
    mpt_attn_impl: str | None = explained("triton", "Accepted; today's MPT chooses its attention itself")
    attn: str = explained(
        "auto",
        f"Attention kernel: auto takes what the program asks for and what works; else {', '.join(KERNELS)}",
    )
    model_max_length: int = explained(512, "Tokens of a sample after which it is cut")
    double_quant: bool = explained(True, "Quantise the quantisation constants as well (--bits 4)")
    quant_type: str = explained("nf4", "nf4 or fp4 (--bits 4)")
    bits: int = explained(16, "Bits of a weight of the frozen LLM: 16, or 8 or 4 through bitsandbytes")
    lora_enable: bool = explained(False, "Train low-rank adapters instead of the LLM's weights")
    lora_r: int = explained(64, "Rank of the adapters")
    lora_alpha: int = explained(16, "Scale of the adapters, divided by their rank")
    lora_dropout: float = explained(0.05, "Dropout in front of the adapters")
    lora_weight_path: str = explained("", "Accepted; unused in the reference as well")
    lora_bias: str = explained("none", "Which biases train with the adapters: none, all or lora_only")
    mm_projector_lr: float | None = explained(None, "Learning rate of the projector, if it has its own")
    mm_vision_tower_lr: float | None = explained(
        None, "Learning rate of the vision tower, if it has its own (--unfreeze_mm_vision_tower)"
    )
    group_by_modality_length: bool = explained(False, "Batches of one modality and like lengths")
    packing: bool = explained(False, "Put the samples of a batch one after the other, without padding")

    resume: str = explained(
        "auto", "auto: resume from the newest checkpoint of --output_dir; never: start over; or a checkpoint"
    )
    on_nonfinite: str = explained("error", "A loss that is not finite: error stops, skip drops that step")
    deterministic: bool = explained(False, "Only algorithms that give the same result every time")
    max_lost_samples: float = explained(
        0.01, "Share of samples without anything to train on above which the run stops; 1 never stops"
    )
    verbose_libraries: bool = explained(
        False,
        "Show warnings and other messages of transformers, DeepSpeed and torch (--debug is another flag)",
    )
    dry_run: bool = explained(False, "Load everything, show samples, what trains and the memory; then exit")

    # Flags of transformers 4.37 that version 5 renamed or dropped.
    evaluation_strategy: str | None = explained(None, "Old name of --eval_strategy")
    warmup_ratio: float | None = explained(None, "Warmup as a part of all steps; --warmup_steps takes it now")
    group_by_length: bool = explained(False, "Batches of like lengths")
    save_safetensors: bool = explained(True, "Accepted when true: weights are always written as safetensors")
    overwrite_output_dir: bool = explained(False, "Start over even if the output folder has checkpoints")
    no_cuda: bool = explained(False, "Old name of --use_cpu")
    logging_dir: str | None = explained(None, "Folder of the tensorboard files")

    def __post_init__(self) -> None:
        check_choice("attn", self.attn, ATTENTION_CHOICES)
        check_choice("bits", self.bits, BITS)
        check_choice("lora_bias", self.lora_bias, LORA_BIASES)
        check_choice("quant_type", self.quant_type, QUANT_TYPES)
        check_choice("on_nonfinite", self.on_nonfinite, NONFINITE_POLICIES)
        seen = str(self.include_num_input_tokens_seen).lower()
        seen = "all" if seen in TRUE else "no" if seen in FALSE else seen
        check_choice("include_num_input_tokens_seen", seen, TOKENS_SEEN)
        self.include_num_input_tokens_seen = seen
        self._take_old_names()
        self._fit_to_device()
        inherited: transformers.TrainingArguments = self
        if inherited.disable_tqdm is None:
            inherited.disable_tqdm = False  # else it would follow how much transformers says
        if inherited.ddp_find_unused_parameters is None and not inherited.gradient_checkpointing_kwargs:
            # a part can be without use for the data at hand, as image_newline is for square images
            inherited.ddp_find_unused_parameters = True
        super().__post_init__()

    @property
    def should_save(self) -> bool:
        """Whether this process writes to the output folder; none does in a --dry_run."""
        return not self.dry_run and bool(super().should_save)

    def _take_old_names(self) -> None:
        """Translate what transformers 5 renamed, and refuse what it can no longer do."""
        inherited: transformers.TrainingArguments = (
            self  # fields of the parent class, whose types differ between versions of transformers
        )
        if self.evaluation_strategy is not None:
            inherited.eval_strategy = self.evaluation_strategy
        # old names are empty from here on, so that a copy of the arguments is not translated twice
        self.evaluation_strategy = None
        if self.warmup_ratio:
            if not 0 < self.warmup_ratio < 1:
                raise UserError(
                    f"--warmup_ratio is {self.warmup_ratio}; expected a part of all steps from 0 to below 1"
                )
            # as before, a number of steps wins over a ratio; a float below 1 is a ratio in transformers 5
            inherited.warmup_steps = inherited.warmup_steps or self.warmup_ratio
        self.warmup_ratio = None
        if not self.save_safetensors:
            raise UserError(
                "--save_safetensors False is not possible: transformers 5 writes safetensors only"
            )
        inherited.use_cpu, self.no_cuda = inherited.use_cpu or self.no_cuda, False
        if self.logging_dir is not None:
            os.environ["TENSORBOARD_LOGGING_DIR"] = self.logging_dir
        if self.optim == "adamw_hf":
            logger.warning(
                "--optim adamw_hf no longer exists in transformers; using adamw_torch, the same algorithm"
            )
            self.optim = "adamw_torch"
        check_choice("optim", word_of(self.optim), [one.value for one in OptimizerNames])
        names = {one.name for one in fields(self)}
        if inherited.gradient_checkpointing and "activation_checkpointing" in names:
            if inherited.activation_checkpointing is None:
                inherited.activation_checkpointing = True
            if inherited.activation_checkpointing_kwargs is None:
                inherited.activation_checkpointing_kwargs = inherited.gradient_checkpointing_kwargs

    def _fit_to_device(self) -> None:
        """Fit number formats to the machine, so that flags written for a GPU also run on a CPU."""
        inherited: transformers.TrainingArguments = self
        if not torch.accelerator.is_available():
            inherited.use_cpu = True
        if inherited.fp16 and inherited.use_cpu:
            raise UserError("--fp16 True needs a GPU; on a CPU use --bf16 True, or neither for float32")
        if inherited.tf32 and (inherited.use_cpu or not is_torch_tf32_available()):
            logger.warning(
                "--tf32 True has no effect: it needs an NVIDIA GPU of the Ampere generation or newer"
            )
            inherited.tf32 = None


class _Parser(ProgramParser, transformers.HfArgumentParser):
    """Argument parser of the fields of the argument classes."""


CLASSES = (ModelArguments, DataArguments, TrainingArguments)


def build_parser() -> _Parser:
    """Build the parser of the command line; its --help is recorded in help.json, see llava.train.help."""
    take_paths(parser := _Parser(CLASSES, epilog=OLD_FLAGS_HELP), PATHS)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parse a command line (default: sys.argv) and check it. Raises UserError for what cannot work."""
    parser, known = build_parser(), frozenset(one.name for one in fields(transformers.TrainingArguments))
    words = translate_old_flags(sys.argv[1:] if argv is None else argv, known)
    try:
        values = vars(parser.parse_known_args(words)[0])
        check_numbers(values)
        check_empty(NO_EMPTY, values)
        check_json(values)
        model_args, data_args, training_args, unknown = parser.parse_args_into_dataclasses(
            args=words, return_remaining_strings=True
        )
    except UserError:
        raise
    except ValueError as error:  # from the checks of transformers
        raise UserError(with_flag(str(error), values)) from error
    if unknown:
        raise UserError(_unknown_flags(unknown, parser))
    check_output_dir(values["output_dir"], writes=not training_args.dry_run)  # transformers fills it in
    given = given_flags(parser, words, CLASSES)
    model_args, data_args = inherit_settings(model_args, data_args, given)
    model_args = inherit_from_projector(model_args, given)
    model_args = choose_version(model_args, given)
    model_args, freeze_projector = spread_parts(model_args, given, lora=training_args.lora_enable)
    if freeze_projector is not None:
        training_args.freeze_mm_mlp_adapter = freeze_projector
    check_args(model_args, data_args, training_args)
    warn_without_effect(given, model_args, data_args, training_args)
    return model_args, data_args, training_args


def make_plan(model_args: ModelArguments, training_args: TrainingArguments) -> RunPlan:
    """Say what a run trains; nothing changes it afterwards, nor the arguments."""
    start_end = model_args.mm_use_im_start_end
    return adapted(RunPlan, training_args, model_args, use_im_start_end=start_end)


def make_data_settings(
    model_args: ModelArguments, data_args: DataArguments, *, label_masks: str | None
) -> DataSettings:
    """Say what samples are made of. label_masks: as chosen for the template, see choose_label_masks."""
    return adapted(
        DataSettings,
        data_args,
        is_multimodal=model_args.vision_tower is not None,
        mm_use_im_start_end=model_args.mm_use_im_start_end,
        label_masks=label_masks,
    )


def for_trainer(training_args: TrainingArguments) -> TrainingArguments:
    """Return a Trainer's arguments: Liger's kernels are not put in again, a --dry_run makes no repository."""
    arguments: transformers.TrainingArguments = copy(training_args)
    arguments.use_liger_kernel = False
    arguments.push_to_hub = arguments.push_to_hub and not training_args.dry_run
    return arguments


def _unknown_flags(unknown: Sequence[str], parser: _Parser) -> str:
    """Say which part of the command line is not understood, with the closest known flags."""
    known = [
        option
        for action in parser_actions(parser)
        for option in action.option_strings
        if "-" not in option[2:]
    ]
    flag = next((part for part in unknown if part.startswith("--")), unknown[0])
    close = difflib.get_close_matches(flag.partition("=")[0], known, n=2)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; --help lists every flag"
    program = os.path.basename(sys.argv[0]) or "training"
    return f"{program} does not know {' '.join(map(str, unknown))}{hint}"


def check_args(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """Refuse combinations of flags that cannot do what they say. Raises UserError with one sentence."""
    if data_args.data_path is None:
        raise UserError("--data_path is missing; name the JSON file with the training records")
    check_grids(data_args.image_grid_pinpoints)
    if model_args.vision_tower is not None:
        check_flag(check_cap, data_args.image_aspect_ratio, model_args.mm_patch_merge_type)
    if model_args.tune_mm_mlp_adapter and model_args.mm_projector_type == "identity":
        raise UserError(
            "--tune_mm_mlp_adapter trains the projector alone, and "
            "--mm_projector_type identity has no weights"
        )
    if model_args.tune_mm_mlp_adapter and training_args.freeze_mm_mlp_adapter:
        raise UserError(
            "--tune_mm_mlp_adapter trains the projector, --freeze_mm_mlp_adapter does not; give one of them"
        )
    if training_args.lora_enable and model_args.tune_mm_mlp_adapter:
        raise UserError(
            "--lora_enable and --tune_mm_mlp_adapter exclude each other: stage 1 trains the projector only"
        )
    if training_args.bits != 16 and not training_args.lora_enable and not model_args.tune_mm_mlp_adapter:
        raise UserError(
            f"--bits {training_args.bits} freezes the LLM; add --lora_enable or --tune_mm_mlp_adapter True"
        )
    if training_args.on_nonfinite == "skip" and training_args.deepspeed:
        raise UserError(
            "--on_nonfinite skip is not possible with --deepspeed, which updates the weights within its "
            "backward pass; use --on_nonfinite error"
        )
    check_without_tower(training_args, sees=model_args.vision_tower is not None)
    if model_args.vision_tower is None:
        _check_text_only(model_args, training_args)
    _check_tower_training(model_args, training_args)
    if data_args.streaming:
        _check_streaming(training_args)
    _choose_evaluation(data_args, training_args)
    if training_args.use_liger_kernel:
        check_liger(training_args.device)
    check_optimizer(training_args)
    check_compiling(training_args)
    check_reports(training_args.report_to)
    check_hub(training_args)


def _choose_evaluation(data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Refuse flags of evaluation that contradict each other; with data alone, evaluate after each epoch."""
    if not 0 <= data_args.eval_split < 1:
        raise UserError(f"--eval_split is {data_args.eval_split}; expected a part from 0 to below 1")
    if data_args.eval_split and data_args.eval_data_path:
        raise UserError("--eval_data_path and --eval_split both choose what to evaluate on; give one of them")
    if data_args.eval_split and data_args.streaming:
        raise UserError("--eval_split cannot hold out a part of a stream; give --eval_data_path")
    has_data = bool(data_args.eval_split or data_args.eval_data_path)
    arguments: transformers.TrainingArguments = training_args
    evaluates = word_of(arguments.eval_strategy) != "no"
    if evaluates and not has_data:
        raise UserError(
            "--eval_strategy needs something to evaluate on; add --eval_data_path or --eval_split"
        )
    if arguments.load_best_model_at_end and not has_data:
        raise UserError("--load_best_model_at_end needs an evaluation; add --eval_data_path or --eval_split")
    if has_data and arguments.metric_for_best_model is not None:
        check_choice("metric_for_best_model", arguments.metric_for_best_model, EVAL_METRICS)
    if has_data and not evaluates:
        logger.info("evaluating after each epoch; --eval_strategy steps --eval_steps N does so more often")
        arguments.eval_strategy, arguments.do_eval = IntervalStrategy.EPOCH, True


def _check_streaming(training_args: TrainingArguments) -> None:
    """Refuse flags that need to know all samples before the first step."""
    if training_args.max_steps <= 0:
        raise UserError("--streaming True needs --max_steps: nobody knows how many samples a stream has")
    if training_args.group_by_modality_length or training_args.group_by_length:
        raise UserError("--streaming True reads samples as they come; drop --group_by_modality_length True")


def _check_tower_training(model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Refuse flags about training the tower that have no effect or no place to be saved."""
    if training_args.mm_vision_tower_lr is not None and not model_args.unfreeze_mm_vision_tower:
        raise UserError("--mm_vision_tower_lr needs --unfreeze_mm_vision_tower True; the tower is frozen")
    if not model_args.unfreeze_mm_vision_tower:
        return
    if training_args.bits != 16 and model_args.tune_mm_mlp_adapter:
        raise UserError(
            "--unfreeze_mm_vision_tower in stage 1 saves the whole model, which --bits "
            f"{training_args.bits} cannot; use --bits 16"
        )


def _check_text_only(model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Refuse flags about the projector when there is no vision tower."""
    given = {
        "tune_mm_mlp_adapter": model_args.tune_mm_mlp_adapter,
        "pretrain_mm_mlp_adapter": model_args.pretrain_mm_mlp_adapter,
        "freeze_mm_mlp_adapter": training_args.freeze_mm_mlp_adapter,
        "mm_projector_lr": training_args.mm_projector_lr,
        "unfreeze_mm_vision_tower": model_args.unfreeze_mm_vision_tower,
    }
    for flag, value in given.items():
        if value:
            part = "tower" if "tower" in flag else "projector"
            raise UserError(f"--{flag} is about the {part}, which exists only with --vision_tower; add it")
