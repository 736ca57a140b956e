#!/usr/bin/env bash
# GQA: accuracy on the balanced testdev split.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SPLIT="${SPLIT:-llava_gqa_testdev_balanced}"
DATA="$EVAL_DIR/gqa"
ANSWERS="$DATA/answers/$SPLIT/$CKPT/merge.jsonl"

ask_in_chunks model_vqa_loader "$ANSWERS" \
    --question-file "$DATA/$SPLIT.jsonl" \
    --image-folder "$DATA/data/images" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

"$PYTHON" "$ROOT/scripts/convert_gqa_for_eval.py" --src "$ANSWERS" --dst "$DATA/data/testdev_balanced_predictions.json"
"$PYTHON" -m llava.eval score gqa --data-dir "$DATA/data" --answers "$ANSWERS"
