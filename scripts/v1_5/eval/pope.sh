#!/usr/bin/env bash
# POPE: precision, recall and F1 of the three sets.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA="$EVAL_DIR/pope"
ANSWERS="$DATA/answers/$CKPT.jsonl"

ask model_vqa_loader "$ANSWERS" \
    --question-file "$DATA/llava_pope_test.jsonl" \
    --image-folder "$DATA/val2014" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

"$PYTHON" -m llava.eval.eval_pope \
    --annotation-dir "$DATA/coco" \
    --question-file "$DATA/llava_pope_test.jsonl" \
    --result-file "$ANSWERS"
