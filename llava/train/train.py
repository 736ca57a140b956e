"""train(): from a command line to a trained checkpoint; has every public name of the reference's train.py."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, set_seed

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
from llava.model.checkpoints.faults import check_loading
from llava.model.checkpoints.files import read_config
from llava.model.checkpoints.loading import from_pretrained, load_tower
from llava.model.language_model.registry import family_of, is_llava, kernels_of, llava_config
from llava.model.llava_arch import average_new_rows
from llava.model.plan import look_into
from llava.model.settings import check_settings
from llava.train.args import DataArguments, ModelArguments, TrainingArguments, parse_args
from llava.train.checkpointing.claim import OutputClaim
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
from llava.train.checks import check_projector_file, check_vision_tower
from llava.train.data.dataset import (
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    make_supervised_data_module,
)
from llava.train.data.samples import choose_tile_grids
from llava.train.data.skipped import report_skipped
from llava.train.data.start_checks import check_data
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
from llava.train.setup import distributed, trainable
from llava.train.setup.attention import select_attention
from llava.train.setup.determinism import seed_everything
from llava.train.setup.liger import use_liger
from llava.train.setup.noise import quiet_libraries
from llava.train.setup.packing import use_packing
from llava.train.setup.tokenizer import load_training_tokenizer
from llava.train.setup.trainable import find_all_linear_names
from llava.utils import UserError, run_program

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


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: dict[str, str], tokenizer: Any, model: Any
) -> None:
    """Add special tokens to tokenizer and model; their embeddings start from the mean of the others."""
    new = tokenizer.add_special_tokens(special_tokens_dict)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if new > 0:
        average_new_rows(model, new)


# ---- the steps of train() ----


def _start_logging(training_args: TrainingArguments) -> None:
    """Let the library's messages appear on the first process, warnings on all."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("llava").setLevel(logging.INFO if training_args.should_log else logging.WARNING)


def _check_start(path: str) -> None:
    """Raise UserError (CheckpointError) for a folder that training cannot start from."""
    if not Path(path).is_dir():  # a hub name: its files show when they are loaded
        return
    found = look_into(path)
    if found.needs_base:
        if found.kind == "projector":
            remedy = "a projector; give its base model, and the projector as --pretrain_mm_mlp_adapter"
        else:
            remedy = "adapters; merge them into their base model first (scripts/merge_lora_weights.py)"
        raise UserError(f"--model_name_or_path is {path}, which holds only {remedy}")


def _load_llm(
    model_args: ModelArguments, training_args: TrainingArguments, requested_attention: str | None
) -> Any:
    """Load what training starts from: an LLM, or a LLaVA checkpoint with its tower and projector."""
    path = model_args.model_name_or_path
    config = read_config(path)
    wants_vision = model_args.vision_tower is not None
    if is_llava(config) and not wants_vision:
        raise UserError(f"{path} is a LLaVA checkpoint; name its tower with --vision_tower")
    family = family_of(config) if wants_vision else None
    model_class = family.model_class if family else AutoModelForCausalLM
    arguments: dict[str, Any] = {
        "dtype": trainable.weight_dtype(model_args, training_args),
        "cache_dir": training_args.cache_dir,
        "attn_implementation": select_attention(
            requested_attention,
            half_precision=training_args.bf16 or training_args.fp16,
            offered=kernels_of(config.get("model_type")),
            flag=training_args.attn,
            model_type=str(config.get("model_type")),
        ),
        **trainable.quantization_arguments(training_args, family.body if family else "model"),
    }
    if is_llava(config):
        _compare_with_checkpoint(config, model_args)
        # the tower's files may lie elsewhere than where the checkpoint was trained
        config = {**config, "mm_vision_tower": model_args.vision_tower}
        check_settings(config, path)
    if wants_vision:
        arguments["config"] = llava_config(config)
    model, info = from_pretrained(model_class, path, **arguments)
    tower = model.get_vision_tower() if wants_vision else None
    check_loading(
        info,
        path,
        tower_is_built=tower is not None and tower.is_loaded,
        projector_later=model_args.pretrain_mm_mlp_adapter is not None,
    )
    if tower is not None:
        load_tower(model, info, path)
    model.accepts_loss_kwargs = False  # the mean over each micro-batch, as in the reference
    model.config.use_cache = False
    if training_args.use_liger_kernel:
        use_liger(model, training_args)
    if training_args.packing:
        use_packing(model)
    return model


def _compare_with_checkpoint(config: dict[str, Any], model_args: ModelArguments) -> None:
    """Warn where a LLaVA checkpoint was trained on other features. Raises UserError for another projector."""
    path, wanted = model_args.model_name_or_path, vars(model_args)
    own = config.get("mm_projector_type") or "linear"
    if own != wanted["mm_projector_type"]:
        raise UserError(
            f"{path} has a projector of type {own}, --mm_projector_type is {wanted['mm_projector_type']}; "
            f"give --mm_projector_type {own}"
        )
    for name in ("mm_vision_select_layer", "mm_vision_select_feature", "mm_patch_merge_type"):
        if name in config and config[name] != wanted[name]:
            logger.warning(
                "%s was trained with --%s %s, this run has %s", path, name, config[name], wanted[name]
            )


def _choose_trained_parts(model: Any, model_args: ModelArguments, training_args: TrainingArguments) -> Any:
    """Freeze, quantise and wrap the LLM as the flags say; returns the model to train."""
    if model_args.freeze_backbone:
        model.base_model.requires_grad_(False)
    if training_args.bits != 16:
        model = trainable.prepare_quantized(model, training_args)
    if training_args.gradient_checkpointing:
        model.enable_input_require_grads()
    if training_args.lora_enable:
        model = trainable.add_lora(model, training_args)
    return model


def _attach_vision(
    model: Any,
    tokenizer: Any,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> None:
    """Give the model its tower and projector, set what of them trains, and record it all in the config."""
    set_seed(training_args.seed)  # again: rows for new tokens draw other numbers under ZeRO-3
    model.get_model().initialize_vision_modules(
        model_args=model_args, fsdp=distributed.uses_fsdp_1(training_args)
    )
    tower = model.get_vision_tower()
    tower.to(dtype=trainable.tower_dtype(training_args), device=training_args.device)
    data_args.image_processor = tower.image_processor
    data_args.is_multimodal = True

    config = model.config
    config.image_aspect_ratio = data_args.image_aspect_ratio
    config.tokenizer_padding_side = tokenizer.padding_side
    config.tokenizer_model_max_length = tokenizer.model_max_length
    grids = choose_tile_grids(
        data_args.image_grid_pinpoints,
        getattr(config, "image_grid_pinpoints", None),
        aspect_ratio=data_args.image_aspect_ratio,
        tile_edge=tower.tile_size,
    )
    data_args.image_grid_pinpoints = grids
    if grids is not None:
        config.image_grid_pinpoints = grids

    config.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter
    # in the trainer: only the projector is saved
    training_args.tune_mm_mlp_adapter = (
        model_args.tune_mm_mlp_adapter and not model_args.unfreeze_mm_vision_tower
    )
    if model_args.tune_mm_mlp_adapter:
        trainable.freeze_for_stage_1(model)
    config.freeze_mm_mlp_adapter = training_args.freeze_mm_mlp_adapter
    if training_args.freeze_mm_mlp_adapter:
        model.get_model().mm_projector.requires_grad_(False)

    config.mm_use_im_start_end = data_args.mm_use_im_start_end = model_args.mm_use_im_start_end
    if model_args.unfreeze_mm_vision_tower:
        trainable.unfreeze_tower(model, training_args)
        config.unfreeze_mm_vision_tower = True  # loaders take the tower from the checkpoint
        config.mm_vision_tower_lr = training_args.mm_vision_tower_lr

    config.mm_projector_lr = training_args.mm_projector_lr
    training_args.use_im_start_end = model_args.mm_use_im_start_end
    config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
    model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)


def train(attn_implementation: str | None = None) -> None:
    """Train as the command line says: stage 1 (projector), full finetuning, or LoRA.

    attn_implementation: "flash_attention_2" if it works here, "sdpa" (default) or "eager". Writes the trained
    model in the reference's layout to --output_dir. Raises UserError for flags and data that cannot be used.
    """
    quiet_libraries(sys.argv)
    model_args, data_args, training_args = parse_args()
    _start_logging(training_args)
    check_vision_tower(model_args.vision_tower)
    check_projector_file(model_args.pretrain_mm_mlp_adapter)
    distributed.start(training_args)
    # a new projector and new adapters start from random values
    seed_everything(training_args.seed, deterministic=training_args.deterministic)

    _check_start(model_args.model_name_or_path)
    # data first: its faults show within seconds, a large model takes minutes to load
    tokenizer, template = load_training_tokenizer(
        model_args.model_name_or_path,
        model_args.version,
        model_max_length=training_args.model_max_length,
        cache_dir=training_args.cache_dir,
    )
    conv = conversation_lib.conv_templates[template]
    data_args.label_masks = choose_label_masks(data_args.label_masks, conv, tokenizer)
    data_module = make_supervised_data_module(tokenizer=tokenizer, data_args=data_args, conv=conv)
    for part in ("train_dataset", "eval_dataset"):
        check_data(data_module[part], data_args, vision_tower=model_args.vision_tower, template=template)
    with OutputClaim(Path(training_args.output_dir) if training_args.should_save else None) as claim:
        _load_and_train(
            claim, model_args, data_args, training_args, tokenizer, template, data_module, attn_implementation
        )


def _load_and_train(
    claim: OutputClaim,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    tokenizer: Any,
    template: str,
    data_module: dict[str, Any],
    attn_implementation: str | None,
) -> None:
    """Load the model, from a checkpoint of the output folder if there is one, train it, and write it."""
    checkpoint = choose_checkpoint(training_args)
    manifest = make_manifest(model_args, data_args, training_args)
    if not training_args.dry_run:
        manifest = open_run(manifest, training_args, checkpoint)

    model = _load_llm(model_args, training_args, attn_implementation)
    model = _choose_trained_parts(model, model_args, training_args)
    if tokenizer.pad_token is None:
        smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)
    conversation_lib.warn_of_unknown_template(model.config, template)
    model.config.conv_template = template
    if model_args.vision_tower is not None:
        _attach_vision(model, tokenizer, model_args, data_args, training_args)
    if training_args.bits != 16:
        trainable.cast_quantized(model, training_args)
    trainable.keep_trained_in_float32(model, training_args)
    trainable.log_trainable(model, training_args)
    distributed.split_by_layers(model, training_args)

    trainer = LLaVATrainer(model=model, processing_class=tokenizer, args=training_args, **data_module)
    if training_args.dry_run:
        return report_dry_run(trainer)
    trainer.manifest = manifest
    trainer.add_callback(claim)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    report_skipped(data_module["train_dataset"], training_args.output_dir)
    save_trained_model(trainer, training_args)


if __name__ == "__main__":
    run_program(train)
