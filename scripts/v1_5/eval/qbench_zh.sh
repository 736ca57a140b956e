#!/usr/bin/env bash
# Q-Bench in Chinese: bash qbench_zh.sh dev|test
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SPLIT="${1:-dev}"
shift || true
DATA="$EVAL_DIR/qbench"

ask model_vqa_qbench "$DATA/answers/zh_$SPLIT/$CKPT.jsonl" \
    --questions-file "$DATA/llvisionqa_zh_$SPLIT.json" \
    --image-folder "$DATA/images_llvisionqa" \
    --lang zh --conv-mode llava_v1 "$@"
