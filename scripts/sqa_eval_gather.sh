#!/usr/bin/env bash
# Join the parts that sqa_eval_batch.sh wrote, and score them: MODEL_PATH, CHUNKS (8), EVAL_DIR as there.
source "$(dirname "${BASH_SOURCE[0]}")/v1_5/eval/common.sh"

CHUNKS="${CHUNKS:-8}"
DATA="$EVAL_DIR/scienceqa"
ANSWERS="$DATA/answers/$CKPT.jsonl"

parts=()
for ((k = 0; k < CHUNKS; k++)); do parts+=("$DATA/answers/${CKPT}_chunk$k.jsonl"); done
cat "${parts[@]}" >"$ANSWERS"
"$PYTHON" -m llava.eval.eval_science_qa \
    --base-dir "$DATA" \
    --result-file "$ANSWERS" \
    --output-file "$DATA/answers/${CKPT}_output.jsonl" \
    --output-result "$DATA/answers/${CKPT}_result.json"
