#!/usr/bin/env bash
# MM-Vet: the file that the evaluator of MM-Vet takes.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA="$EVAL_DIR/mm-vet"
ANSWERS="$DATA/answers/$CKPT.jsonl"

ask model_vqa "$ANSWERS" \
    --question-file "$DATA/llava-mm-vet.jsonl" \
    --image-folder "$DATA/images" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

mkdir -p "$DATA/results"
"$PYTHON" "$ROOT/scripts/convert_mmvet_for_eval.py" --src "$ANSWERS" --dst "$DATA/results/$CKPT.json"
