#!/usr/bin/env bash
# Trains a finished LLaVA-1.5 on with your own data (set DATA_PATH and IMAGE_FOLDER).
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

MODEL_PATH="${MODEL_PATH:-liuhaotian/llava-v1.5-13b}"
VISION_TOWER="${VISION_TOWER:-openai/clip-vit-large-patch14-336}"
DATA_PATH="${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}"
IMAGE_FOLDER="${IMAGE_FOLDER:-./playground/data}"
OUTPUT_DIR="${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-task}"

launch train_mem.py zero3.json \
    --version v1 \
    --mm_projector_type mlp2x_gelu \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    "${BF16_FLAGS[@]}" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --save_steps 50000 \
    --learning_rate 2e-5 \
    "$@"
