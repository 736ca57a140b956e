"""train(): from a command line to a trained checkpoint; has every public name of the reference's train.py."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from llava.train.help import show_help

if __name__ == "__main__":
    show_help(sys.argv)  # before what follows, which takes ten seconds

from llava import conversation as conversation_lib
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.mm_utils import tokenizer_image_token
from llava.model import (
    LlavaConfig,
    LlavaLlamaForCausalLM,
    LlavaMistralConfig,
    LlavaMistralForCausalLM,
    LlavaMptConfig,
    LlavaMptForCausalLM,
)
from llava.train.args import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    for_trainer,
    make_data_settings,
    make_plan,
    parse_args,
)
from llava.train.build import (
    build_model,
    check_projector_fits,
    check_something_trains,
    check_start,
    check_stored_bits,
    check_tiles,
    smart_tokenizer_and_embedding_resize,
)
from llava.train.callbacks.tasks import EvalTasks, planned_tasks
from llava.train.checkpointing.claim import OutputClaim
from llava.train.checkpointing.folders import check_other_model
from llava.train.checkpointing.manifest import make_manifest
from llava.train.checkpointing.resume import choose_checkpoint, open_run
from llava.train.checkpointing.saving import (
    get_mm_adapter_state_maybe_zero_3,
    get_peft_state_maybe_zero_3,
    get_peft_state_non_lora_maybe_zero_3,
    maybe_zero_3,
    safe_save_model_for_hf_trainer,
    save_trained_model,
)
from llava.train.checks import (
    check_frames,
    check_projector,
    check_projector_file,
    check_tower_files,
    check_vision_tower,
)
from llava.train.data.dataset import (
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    make_supervised_data_module,
    with_settings,
)
from llava.train.data.skipped import report_skipped
from llava.train.data.start_checks import check_data, has_videos
from llava.train.dry_run.report import report_dry_run
from llava.train.labels.preprocess import (
    IS_TOKENIZER_GREATER_THAN_0_14,
    _add_speaker_and_signal,
    _mask_targets,
    _tokenize_fn,
    choose_label_masks,
    preprocess,
    preprocess_llama_2,
    preprocess_mpt,
    preprocess_multimodal,
    preprocess_plain,
    preprocess_v1,
)
from llava.train.llava_trainer import LLaVATrainer
from llava.train.setup import distributed
from llava.train.setup.determinism import seed_everything
from llava.train.setup.noise import quiet_unless_verbose
from llava.train.setup.tokenizer import load_training_tokenizer
from llava.train.setup.trainable import find_all_linear_names
from llava.utils import run_program

__all__ = [
    "DEFAULT_IMAGE_TOKEN",
    "DEFAULT_IM_END_TOKEN",
    "DEFAULT_IM_START_TOKEN",
    "IGNORE_INDEX",
    "IMAGE_TOKEN_INDEX",
    "IS_TOKENIZER_GREATER_THAN_0_14",
    "DataArguments",
    "DataCollatorForSupervisedDataset",
    "LLaVATrainer",
    "LazySupervisedDataset",
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "LlavaMistralConfig",
    "LlavaMistralForCausalLM",
    "LlavaMptConfig",
    "LlavaMptForCausalLM",
    "ModelArguments",
    "TrainingArguments",
    "_add_speaker_and_signal",
    "_mask_targets",
    "_tokenize_fn",
    "conversation_lib",
    "find_all_linear_names",
    "get_mm_adapter_state_maybe_zero_3",
    "get_peft_state_maybe_zero_3",
    "get_peft_state_non_lora_maybe_zero_3",
    "local_rank",
    "make_supervised_data_module",
    "maybe_zero_3",
    "preprocess",
    "preprocess_llama_2",
    "preprocess_mpt",
    "preprocess_multimodal",
    "preprocess_plain",
    "preprocess_v1",
    "rank0_print",
    "safe_save_model_for_hf_trainer",
    "smart_tokenizer_and_embedding_resize",
    "tokenizer_image_token",
    "train",
]

logger = logging.getLogger(__name__)

# The rank of this process on its machine; a public name of the reference.
local_rank = int(os.environ.get("LOCAL_RANK", "-1"))


def rank0_print(*args: object) -> None:
    """Log on the first process only."""
    if local_rank in (-1, 0):
        logger.info(" ".join(map(str, args)))


# ---- the steps of train() ----


def _start_logging(training_args: TrainingArguments) -> None:
    """Let the library's messages appear on the first process, warnings on all."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("llava").setLevel(logging.INFO if training_args.should_log else logging.WARNING)


def _check_parts(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> None:
    """Refuse a model, tower or projector that training cannot start from, while no weights are loaded."""
    check_vision_tower(model_args.vision_tower)
    check_projector(model_args)
    check_projector_file(model_args.pretrain_mm_mlp_adapter, model_args.mm_patch_merge_type)
    check_start(model_args.model_name_or_path)
    check_stored_bits(model_args.model_name_or_path, training_args)
    check_tower_files(model_args)
    check_tiles(model_args, aspect_ratio=data_args.image_aspect_ratio, grids=data_args.image_grid_pinpoints)
    check_projector_fits(model_args)


def train(attn_implementation: str | None = None) -> None:
    """Train as the command line says: stage 1 (projector), full finetuning, or LoRA.

    attn_implementation: "flash_attention_2" if it works here, "sdpa" (default) or "eager". Writes the trained
    model in the reference's layout to --output_dir. Raises UserError for flags and data that cannot be used.
    """
    # the command line, and what is wrong with it
    quiet_unless_verbose(sys.argv)
    model_args, data_args, training_args = parse_args()
    _start_logging(training_args)
    _check_parts(model_args, data_args, training_args)
    distributed.start(training_args)
    # a new projector and new adapters start from random values
    seed_everything(training_args.seed, deterministic=training_args.deterministic)
    plan = make_plan(model_args, training_args)
    tasks = planned_tasks(training_args, plan)
    check_something_trains(model_args, plan)

    # data first: its faults show within seconds, a large model takes minutes to load
    tokenizer, template = load_training_tokenizer(
        model_args.model_name_or_path,
        model_args.version,
        model_max_length=training_args.model_max_length,
        cache_dir=training_args.cache_dir,
    )
    conv = conversation_lib.conversation_for(template, tokenizer)
    masks = choose_label_masks(data_args.label_masks, conv, tokenizer)
    settings = make_data_settings(model_args, data_args, label_masks=masks)
    data = make_supervised_data_module(tokenizer=tokenizer, data_args=settings, conv=conv)
    for part in ("train_dataset", "eval_dataset"):
        check_data(data[part], data_args, vision_tower=model_args.vision_tower, template=template)
        if has_videos(data[part]):
            check_frames(model_args)

    with OutputClaim(Path(training_args.output_dir) if training_args.should_save else None) as claim:
        # from a checkpoint of the output folder, if there is one
        checkpoint = choose_checkpoint(training_args)
        if checkpoint is None and training_args.output_dir:
            check_other_model(Path(training_args.output_dir), plan.stage)
        manifest = make_manifest(
            model_args,
            replace(data_args, label_masks=masks),
            training_args,
            template=conversation_lib.style_of(conv.sep_style).digest,
        )
        if not training_args.dry_run:
            manifest = open_run(manifest, training_args, checkpoint)
        model, settings = build_model(
            model_args, training_args, plan, settings, tokenizer, template, attention=attn_implementation
        )
        data = with_settings(data, settings)

        arguments = for_trainer(training_args)
        trainer = LLaVATrainer(model=model, processing_class=tokenizer, args=arguments, plan=plan, **data)
        if training_args.dry_run:
            return report_dry_run(trainer)
        trainer.manifest = manifest
        trainer.add_callback(claim)
        if tasks:
            shown = settings.image_processor
            asked = EvalTasks(trainer, tasks, training_args, conv_mode=template, image_processor=shown)
            trainer.add_callback(asked)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        report_skipped(data["train_dataset"], training_args.output_dir)
        save_trained_model(trainer, plan, str(training_args.output_dir))


if __name__ == "__main__":
    run_program(train)
