"""The model of a run: what training starts from, with tower, projector and adapters as planned."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from llava import conversation as conversation_lib
from llava.mm_utils import cuts_tiles
from llava.model.checkpoints.faults import check_loading
from llava.model.checkpoints.files import CheckpointError, load_weights, read_config, read_tensors
from llava.model.checkpoints.loading import from_pretrained, load_tower
from llava.model.checkpoints.projector import compare_projector
from llava.model.checkpoints.quantization import stored_bits
from llava.model.language_model.registry import family_of, is_llava, kernels_of, llava_config
from llava.model.llava_arch import average_new_rows
from llava.model.multimodal.config import VIDEO_SETTINGS, MultimodalConfig
from llava.model.multimodal.video import pooled_side
from llava.model.multimodal_encoder.registry import describe_tower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.multimodal_projector.registry import check_widths, projected_tile
from llava.model.plan import look_into, tell_of_delta
from llava.model.settings import check_settings
from llava.train.args import ModelArguments, TrainingArguments
from llava.train.data.samples import choose_tile_grids
from llava.train.plan import DataSettings, RunPlan
from llava.train.setup import distributed, trainable
from llava.train.setup.attention import select_attention
from llava.train.setup.liger import use_liger
from llava.train.setup.packing import use_packing
from llava.train.tunable import freezes_head
from llava.utils import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def check_start(path: str) -> None:
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


def check_tiles(model_args: ModelArguments, *, aspect_ratio: str | None, grids: str | None) -> None:
    """Raise UserError for tiles without grids, or with grids of the flag that are not made of tiles.

    grids: those of the flag, or of the checkpoint that training starts from, which are judged as it is
    loaded.
    """
    if model_args.vision_tower is None or not cuts_tiles(aspect_ratio):
        return
    try:
        own = read_config(model_args.model_name_or_path).get("image_grid_pinpoints")
    except CheckpointError:  # told when it is loaded
        return
    if grids is None or grids != str(own):
        edge = describe_tower(MultimodalConfig.of(model_args)).tile_size
        choose_tile_grids(grids, None, aspect_ratio=aspect_ratio, tile_edge=edge)


def check_projector_fits(model_args: ModelArguments) -> None:
    """Raise CheckpointError for a --pretrain_mm_mlp_adapter of other shapes than the projector's."""
    file = model_args.pretrain_mm_mlp_adapter
    if file is None or model_args.vision_tower is None:
        return
    try:
        config = llava_config(read_config(model_args.model_name_or_path))
    except CheckpointError:  # told when it is loaded
        return
    config.mm_projector_type = model_args.mm_projector_type
    config.mm_hidden_size = describe_tower(MultimodalConfig.of(model_args)).hidden_size
    check_widths(config)
    projector, kind = build_vision_projector(config), model_args.mm_projector_type or "linear"
    compare_projector(projector, read_tensors(file, shapes_only=True), file, kind)


def check_stored_bits(path: str, training_args: TrainingArguments) -> None:
    """Raise UserError for a checkpoint that is stored quantised and cannot train so; with adapters it can."""
    try:
        config = read_config(path)
    except CheckpointError:  # told when it is loaded
        return
    bits = stored_bits(config, path)
    if bits == 16:
        return
    if not training_args.lora_enable:
        raise UserError(
            f"--model_name_or_path {path} is stored in {bits} bit, and such weights do not train; add "
            "--lora_enable True, or give the model it was made from"
        )
    if training_args.bits not in (16, bits):
        raise UserError(
            f"--bits is {training_args.bits}, and --model_name_or_path {path} is stored in {bits} bit; give "
            f"--bits {bits}, or the model it was made from"
        )
    logger.warning(
        "%s is stored in %d bit, on which the loader puts no adapters: to ask what is trained here, give the "
        "model it was made from as --model-base, with --load-%dbit",
        path,
        bits,
        bits,
    )


def check_something_trains(model_args: ModelArguments, plan: RunPlan) -> None:
    """Raise UserError for flags that freeze every weight of what training starts from.

    It reads config.json and the names of the weights."""
    if plan.lora_enable or plan.unfreeze_mm_vision_tower or not plan.freeze_backbone:
        return
    path, sees = model_args.model_name_or_path, model_args.vision_tower is not None
    if sees and not plan.freeze_mm_mlp_adapter and model_args.mm_projector_type != "identity":
        return
    config = read_config(path)
    if sees and "unpad" in (model_args.mm_patch_merge_type or ""):
        had_newline = is_llava(config) and "unpad" in (config.get("mm_patch_merge_type") or "")
        if not had_newline:  # a new one trains; that of a checkpoint is frozen with the backbone
            return
    built = llava_config(config, path) if sees else AutoConfig.from_pretrained(path)
    if not built.tie_word_embeddings:  # the head trains
        return
    # transformers does not tie a head that is stored and differs: then the model itself tells
    if not any(name.endswith("lm_head.weight") for name in load_weights(path, shapes_only=True)):
        raise UserError(trainable.NOTHING_TRAINS)


def load_llm(
    model_args: ModelArguments,
    training_args: TrainingArguments,
    plan: RunPlan,
    requested_attention: str | None,
) -> Any:
    """Load what training starts from: an LLM, or a LLaVA checkpoint with its tower and projector."""
    path = model_args.model_name_or_path
    config = read_config(path)
    wants_vision = model_args.vision_tower is not None
    if is_llava(config) and not wants_vision:
        raise UserError(f"{path} is a LLaVA checkpoint; name its tower with --vision_tower")
    family = family_of(config) if wants_vision else None
    model_class = family.model_class if family else AutoModelForCausalLM
    if plan.weight_dtype != plan.compute_dtype:
        computed = str(plan.compute_dtype).removeprefix("torch.")
        logger.info("weights that train are held in float32; products are computed in %s", computed)
    arguments: dict[str, Any] = {
        "dtype": plan.weight_dtype,
        "cache_dir": training_args.cache_dir,
        "attn_implementation": select_attention(
            requested_attention,
            half_precision=plan.bf16 or plan.fp16,
            offered=kernels_of(config.get("model_type")),
            flag=training_args.attn,
            model_type=str(config.get("model_type")),
        ),
        **trainable.quantization_arguments(plan, family.body if family else "model"),
    }
    if is_llava(config):
        _compare_with_checkpoint(config, model_args)
        # the tower's files may lie elsewhere than where the checkpoint was trained
        config = {**config, "mm_vision_tower": model_args.vision_tower}
        if model_args.mm_vision_resolution is not None:
            config["mm_vision_resolution"] = model_args.mm_vision_resolution
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
    tell_of_delta(model, path)
    model.accepts_loss_kwargs = False  # the mean over each micro-batch, as in the reference
    model.config.use_cache = False
    if training_args.use_liger_kernel:
        use_liger(model)
    if plan.packing:
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
    names = ("mm_vision_select_layer", "mm_vision_select_feature", "mm_patch_merge_type", *VIDEO_SETTINGS)
    for name in names:
        if config.get(name) is not None and wanted[name] not in (None, config[name]):
            logger.warning(
                "%s was trained with --%s %s, this run has %s", path, name, config[name], wanted[name]
            )


def choose_trained_parts(model: PreTrainedModel, plan: RunPlan) -> Any:
    """Freeze, quantise and wrap the LLM as the flags say; returns the model to train."""
    if plan.freeze_backbone:
        model.base_model.requires_grad_(False)
    if plan.bits != 16:
        model = trainable.prepare_quantized(model, plan)
    if plan.gradient_checkpointing:
        model.enable_input_require_grads()
    if plan.lora_enable:
        model = trainable.add_lora(model, plan)
    return model


def attach_vision(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model_args: ModelArguments,
    plan: RunPlan,
    settings: DataSettings,
) -> DataSettings:
    """Give the model its tower and projector, set what of them trains, and record it all in the config.

    Returns the settings of the data with what the tower knows: the image processor and the tile grids.
    """
    set_seed(plan.seed)  # again: rows for new tokens draw other numbers under ZeRO-3
    model.get_model().initialize_vision_modules(model_args=model_args, fsdp=distributed.uses_fsdp_1(plan))
    tower = model.get_vision_tower()
    tower.to(dtype=plan.tower_dtype, device=plan.device)

    config = model.config
    config.image_aspect_ratio = settings.image_aspect_ratio
    for name in VIDEO_SETTINGS:
        if vars(model_args)[name] is not None:
            setattr(config, name, vars(model_args)[name])
    config.tokenizer_padding_side = tokenizer.padding_side
    config.tokenizer_model_max_length = tokenizer.model_max_length
    grids = choose_tile_grids(
        settings.image_grid_pinpoints,
        config.to_dict().get("image_grid_pinpoints"),
        aspect_ratio=settings.image_aspect_ratio,
        tile_edge=tower.tile_size,
    )
    if grids is not None:
        config.image_grid_pinpoints = grids

    if freezes_head(plan.mm_tunable_parts):
        model.requires_grad_(False)
        model.get_model().mm_projector.requires_grad_(True)
    if plan.mm_tunable_parts is not None:
        config.mm_tunable_parts = plan.mm_tunable_parts
    config.tune_mm_mlp_adapter = plan.tune_mm_mlp_adapter
    if plan.tune_mm_mlp_adapter:
        trainable.freeze_for_stage_1(model)
    config.freeze_mm_mlp_adapter = plan.freeze_mm_mlp_adapter
    if plan.freeze_mm_mlp_adapter:
        model.get_model().mm_projector.requires_grad_(False)

    config.mm_use_im_start_end = plan.use_im_start_end
    if plan.unfreeze_mm_vision_tower:
        trainable.unfreeze_tower(model, plan)
        config.unfreeze_mm_vision_tower = True  # loaders take the tower from the checkpoint
        config.mm_vision_tower_lr = plan.mm_vision_tower_lr

    config.mm_projector_lr = plan.mm_projector_lr
    config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
    model.initialize_vision_tokenizer(model_args, tokenizer=tokenizer)
    settings = replace(
        settings,
        image_processor=tower.image_processor,
        image_grid_pinpoints=grids,
        pads_several=MultimodalConfig.of(config).pads_several,
    )
    chosen = MultimodalConfig.of(config)
    tile = projected_tile(chosen, tower.tile_features)
    settings = replace(settings, frame_length=pooled_side(tile.side, chosen) ** 2)
    if tile.count != tower.tokens_per_tile:  # the reference's number is about projectors that keep them all
        settings = replace(settings, image_length=tile.count)
    return settings


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: dict[str, str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> None:
    """Add special tokens to tokenizer and model; their embeddings start from the mean of the others."""
    new = tokenizer.add_special_tokens(special_tokens_dict)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if new > 0:
        average_new_rows(model, new)


def build_model(
    model_args: ModelArguments,
    training_args: TrainingArguments,
    plan: RunPlan,
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    *,
    attention: str | None,
) -> tuple[Any, DataSettings]:
    """Build the model that a Trainer gets; also returns the settings of the data as its tower needs them.

    attention: what the program asks for; --attn goes before it.
    """
    model = load_llm(model_args, training_args, plan, attention)
    model = choose_trained_parts(model, plan)
    if tokenizer.pad_token is None:
        smart_tokenizer_and_embedding_resize({"pad_token": "[PAD]"}, tokenizer, model)
    conversation_lib.warn_of_unknown_template(model.config, template)
    model.config.conv_template = template
    if settings.is_multimodal:
        settings = attach_vision(model, tokenizer, model_args, plan, settings)
    if plan.bits != 16:
        trainable.cast_quantized(model, plan)
    trainable.keep_trained_in_float32(model, plan)
    trainable.log_trainable(model, plan)
    distributed.split_by_layers(model, plan)
    return model, settings
