#!/usr/bin/env bash
# VQAv2: answers of test-dev for the server, or of another SPLIT.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SPLIT="${SPLIT:-llava_vqav2_mscoco_test-dev2015}"
DATA="$EVAL_DIR/vqav2"
ANSWERS="$DATA/answers/$SPLIT/$CKPT/merge.jsonl"

ask_in_chunks model_vqa_loader "$ANSWERS" \
    --question-file "$DATA/$SPLIT.jsonl" \
    --image-folder "$DATA/test2015" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

"$PYTHON" "$ROOT/scripts/convert_vqav2_for_submission.py" --dir "$DATA" --split "$SPLIT" --ckpt "$CKPT"
