#!/usr/bin/env bash
# LLaVA-1.5, stage 1: the projector learns from 558,000 captions. 8 GPUs: global batch size 256.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

MODEL_PATH="${MODEL_PATH:-lmsys/vicuna-13b-v1.5}"
VISION_TOWER="${VISION_TOWER:-openai/clip-vit-large-patch14-336}"
DATA_PATH="${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}"
IMAGE_FOLDER="${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}"
OUTPUT_DIR="${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-pretrain}"

launch train_mem.py zero2.json \
    --version plain \
    --mm_projector_type mlp2x_gelu \
    --tune_mm_mlp_adapter True \
    "${BF16_FLAGS[@]}" \
    --num_train_epochs 1 \
    --per_device_train_batch_size 32 \
    --gradient_accumulation_steps 1 \
    --save_steps 24000 \
    --learning_rate 1e-3 \
    "$@"
