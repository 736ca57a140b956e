#!/usr/bin/env bash
# ScienceQA: accuracy on the test split.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA="$EVAL_DIR/scienceqa"
ANSWERS="$DATA/answers/$CKPT.jsonl"

ask model_vqa_science "$ANSWERS" \
    --question-file "$DATA/llava_test_CQM-A.json" \
    --image-folder "$DATA/images/test" \
    --single-pred-prompt --temperature 0 --conv-mode vicuna_v1 "$@"

"$PYTHON" -m llava.eval.eval_science_qa \
    --base-dir "$DATA" \
    --result-file "$ANSWERS" \
    --output-file "$DATA/answers/${CKPT}_output.jsonl" \
    --output-result "$DATA/answers/${CKPT}_result.json"
