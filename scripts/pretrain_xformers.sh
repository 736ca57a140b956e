#!/usr/bin/env bash
# Stage 1 for GPUs older than Ampere (V100): float32, memory-efficient attention. 8 GPUs: global batch 128.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MODEL_VERSION="${MODEL_VERSION:-vicuna-v1-3-7b}"
PROMPT_VERSION="${PROMPT_VERSION:-plain}"
MODEL_PATH="${MODEL_PATH:-./checkpoints/$MODEL_VERSION}"
VISION_TOWER="${VISION_TOWER:-openai/clip-vit-large-patch14}"
DATA_PATH="${DATA_PATH:-/path/to/pretrain_data.json}"
IMAGE_FOLDER="${IMAGE_FOLDER:-/path/to/images}"
OUTPUT_DIR="${OUTPUT_DIR:-./checkpoints/llava-$MODEL_VERSION-pretrain}"

launch train_xformers.py zero2.json \
    --version "$PROMPT_VERSION" \
    --tune_mm_mlp_adapter True \
    --bf16 False --tf32 False \
    --num_train_epochs 1 \
    --per_device_train_batch_size 4 \
    --gradient_accumulation_steps 4 \
    --save_steps 24000 \
    --learning_rate 2e-3 \
    "$@"
