#!/usr/bin/env bash
# Q-Bench: bash qbench.sh dev|test
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SPLIT="${1:-dev}"
shift || true
DATA="$EVAL_DIR/qbench"

ask model_vqa_qbench "$DATA/answers/$SPLIT/$CKPT.jsonl" \
    --questions-file "$DATA/llvisionqa_$SPLIT.json" \
    --image-folder "$DATA/images_llvisionqa" \
    --lang en --conv-mode llava_v1 "$@"
