"""Every public name of the reference, and what other projects import, is at its old place."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "llava": "LlavaLlamaForCausalLM",
    "llava.constants": "CONTROLLER_HEART_BEAT_EXPIRATION WORKER_HEART_BEAT_INTERVAL LOGDIR IGNORE_INDEX "
    "IMAGE_TOKEN_INDEX DEFAULT_IMAGE_TOKEN DEFAULT_IMAGE_PATCH_TOKEN DEFAULT_IM_START_TOKEN "
    "DEFAULT_IM_END_TOKEN IMAGE_PLACEHOLDER",
    "llava.conversation": "SeparatorStyle Conversation default_conversation conv_templates conv_vicuna_v0 "
    "conv_vicuna_v1 conv_llama_2 conv_llava_llama_2 conv_mistral_instruct conv_chatml_direct conv_mpt "
    "conv_llava_plain conv_llava_v0 conv_llava_v0_mmtag conv_llava_v1 conv_llava_v1_mmtag",
    "llava.mm_utils": "select_best_resolution resize_and_pad_image divide_to_patches "
    "get_anyres_image_grid_shape process_anyres_image load_image_from_base64 "
    "expand2square process_images tokenizer_image_token "
    "get_model_name_from_path KeywordsStoppingCriteria",
    "llava.utils": "server_error_msg moderation_msg handler build_logger StreamToLogger disable_torch_init "
    "violates_moderation pretty_print_semaphore",
    "llava.model": "LlavaLlamaForCausalLM LlavaConfig LlavaMptForCausalLM LlavaMptConfig "
    "LlavaMistralForCausalLM LlavaMistralConfig",
    "llava.model.builder": "load_pretrained_model LlavaLlamaForCausalLM LlavaMptForCausalLM "
    "LlavaMistralForCausalLM DEFAULT_IMAGE_PATCH_TOKEN DEFAULT_IM_START_TOKEN DEFAULT_IM_END_TOKEN",
    "llava.model.llava_arch": "LlavaMetaModel LlavaMetaForCausalLM unpad_image get_anyres_image_grid_shape "
    "build_vision_tower build_vision_projector",
    "llava.model.language_model.llava_llama": "LlavaConfig LlavaLlamaModel LlavaLlamaForCausalLM",
    "llava.model.language_model.llava_mistral": "LlavaMistralConfig LlavaMistralModel "
    "LlavaMistralForCausalLM",
    "llava.model.language_model.llava_mpt": "LlavaMptConfig LlavaMptModel LlavaMptForCausalLM",
    "llava.model.multimodal_encoder.builder": "build_vision_tower",
    "llava.model.multimodal_encoder.clip_encoder": "CLIPVisionTower CLIPVisionTowerS2",
    "llava.model.multimodal_projector.builder": "IdentityMap SimpleResBlock build_vision_projector",
    "llava.model.apply_delta": "apply_delta",
    "llava.model.make_delta": "make_delta",
    "llava.model.consolidate": "consolidate_ckpt",
    "llava.model.convert_hf": "main to_hf from_hf write_mmproj",
    "llava.model.utils": "auto_upgrade",
    "llava.model.tokenizer": "load_tokenizer",
    "llava.train.train": "rank0_print local_rank IS_TOKENIZER_GREATER_THAN_0_14 ModelArguments DataArguments "
    "TrainingArguments maybe_zero_3 get_peft_state_maybe_zero_3 get_peft_state_non_lora_maybe_zero_3 "
    "get_mm_adapter_state_maybe_zero_3 find_all_linear_names safe_save_model_for_hf_trainer "
    "smart_tokenizer_and_embedding_resize _tokenize_fn _mask_targets _add_speaker_and_signal "
    "preprocess_multimodal preprocess_llama_2 preprocess_v1 preprocess_mpt preprocess_plain preprocess "
    "LazySupervisedDataset DataCollatorForSupervisedDataset make_supervised_data_module train "
    "conversation_lib LLaVATrainer tokenizer_image_token",
    "llava.train.llava_trainer": "maybe_zero_3 get_mm_adapter_state_maybe_zero_3 split_to_even_chunks "
    "get_modality_length_grouped_indices get_length_grouped_indices LengthGroupedSampler LLaVATrainer",
    "llava.train.llama_flash_attn_monkey_patch": "replace_llama_attn_with_flash_attn",
    "llava.train.llama_xformers_attn_monkey_patch": "replace_llama_attn_with_xformers_attn",
    "llava.serve.cli": "load_image main",
    "llava.eval.run_llava": "image_parser load_image load_images eval_model",
    "llava.eval.model_qa": "eval_model",
    "llava.eval.model_vqa": "split_list get_chunk eval_model",
    "llava.eval.model_vqa_loader": "split_list get_chunk eval_model CustomDataset collate_fn "
    "create_data_loader",
    "llava.eval.model_vqa_mmbench": "all_options split_list get_chunk is_none get_options eval_model",
    "llava.eval.model_vqa_science": "split_list get_chunk eval_model",
    "llava.eval.eval_pope": "eval_pope",
    "llava.eval.eval_textvqa": "prompt_processor eval_single",
    "llava.eval.eval_science_qa": "convert_caps get_pred_idx",
    "llava.eval.eval_gpt_review": "get_eval parse_score",
    "llava.eval.eval_gpt_review_bench": "get_eval parse_score",
    "llava.eval.eval_gpt_review_visual": "get_eval parse_score",
    "llava.eval.qa_baseline_gpt35": "get_answer",
    "llava.eval.generate_webpage_data_from_table": "read_jsonl trim_hanging_lines",
    "llava.eval.m4c_evaluator": "EvalAIAnswerProcessor TextVQAAccuracyEvaluator STVQAAccuracyEvaluator "
    "STVQAANLSEvaluator TextCapsBleu4Evaluator",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in PUBLIC[module].split() if not hasattr(loaded, name)]
    assert not missing, f"{module} lacks {missing}"


def test_star_import_of_train_gives_the_names_that_others_use() -> None:
    from llava.train import train

    names = set(getattr(train, "__all__", dir(train)))
    assert {"LazySupervisedDataset", "preprocess", "preprocess_multimodal", "train", "LLaVATrainer"} <= names
