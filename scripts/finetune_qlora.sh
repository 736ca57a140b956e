#!/usr/bin/env bash
# The first LLaVA, stage 2 with QLoRA: adapters on an LLM of 4 bits. 8 GPUs: global batch size 128.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# for Llama 2: MODEL_VERSION=llama-2-7b-chat PROMPT_VERSION=llava_llama_2
MODEL_VERSION="${MODEL_VERSION:-vicuna-v1-3-7b}"
PROMPT_VERSION="${PROMPT_VERSION:-v1}"
MODEL_PATH="${MODEL_PATH:-./checkpoints/$MODEL_VERSION}"
VISION_TOWER="${VISION_TOWER:-openai/clip-vit-large-patch14}"
DATA_PATH="${DATA_PATH:-./playground/data/llava_instruct_80k.json}"
IMAGE_FOLDER="${IMAGE_FOLDER:-/path/to/coco/train2017}"
PROJECTOR="${PROJECTOR:-./checkpoints/llava-$MODEL_VERSION-pretrain/mm_projector.bin}"
OUTPUT_DIR="${OUTPUT_DIR:-./checkpoints/llava-$MODEL_VERSION-finetune_qlora}"

launch train_mem.py zero2.json \
    --lora_enable True --bits 4 \
    --version "$PROMPT_VERSION" \
    --pretrain_mm_mlp_adapter "$PROJECTOR" \
    "${BF16_FLAGS[@]}" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --save_steps 50000 \
    --learning_rate 2e-5 \
    "$@"
