#!/usr/bin/env bash
# ScienceQA: 12 epochs from a projector of stage 1. 8 GPUs: global batch size 128.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PROMPT_VERSION="${PROMPT_VERSION:-v1}"
MODEL_PATH="${MODEL_PATH:-lmsys/vicuna-13b-v1.3}"
VISION_TOWER="${VISION_TOWER:-openai/clip-vit-large-patch14}"
DATA_PATH="${DATA_PATH:-/Data/ScienceQA/data/scienceqa/llava_train_QCM-LEA.json}"
IMAGE_FOLDER="${IMAGE_FOLDER:-/Data/ScienceQA/data/scienceqa/images/train}"
PROJECTOR="${PROJECTOR:-./checkpoints/huggingface/liuhaotian/llava-pretrain-vicuna-13b-v1.3/mm_projector.bin}"
OUTPUT_DIR="${OUTPUT_DIR:-./checkpoints/llava-vicuna-13b-v1.3-pretrain_lcs558k_plain-ScienceQA_QCM_LEA-12e}"

launch train_mem.py zero2.json \
    --version "$PROMPT_VERSION" \
    --pretrain_mm_mlp_adapter "$PROJECTOR" \
    "${BF16_FLAGS[@]}" \
    --num_train_epochs 12 \
    --per_device_train_batch_size 16 \
    --gradient_accumulation_steps 1 \
    --save_steps 50000 \
    --learning_rate 2e-5 \
    "$@"
