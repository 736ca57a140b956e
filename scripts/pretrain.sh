#!/usr/bin/env bash
# The first LLaVA, stage 1: a linear projector learns from captions. 8 GPUs: global batch size 128.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MODEL_VERSION="${MODEL_VERSION:-vicuna-v1-3-7b}"
PROMPT_VERSION="${PROMPT_VERSION:-plain}"
MODEL_PATH="${MODEL_PATH:-./checkpoints/$MODEL_VERSION}"
VISION_TOWER="${VISION_TOWER:-openai/clip-vit-large-patch14}"
DATA_PATH="${DATA_PATH:-/path/to/pretrain_data.json}"
IMAGE_FOLDER="${IMAGE_FOLDER:-/path/to/images}"
OUTPUT_DIR="${OUTPUT_DIR:-./checkpoints/llava-$MODEL_VERSION-pretrain}"

launch train_mem.py zero2.json \
    --version "$PROMPT_VERSION" \
    --tune_mm_mlp_adapter True \
    "${BF16_FLAGS[@]}" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --save_steps 24000 \
    --learning_rate 2e-3 \
    "$@"
