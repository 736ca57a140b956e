#!/usr/bin/env bash
# MMBench: the workbook that the server took; `llava.eval score mmbench` scores here.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SPLIT="${SPLIT:-mmbench_dev_20230712}"
DATA="$EVAL_DIR/mmbench"
ANSWERS="$DATA/answers/$SPLIT/$CKPT.jsonl"

ask model_vqa_mmbench "$ANSWERS" \
    --question-file "$DATA/$SPLIT.tsv" \
    --single-pred-prompt --temperature 0 --conv-mode vicuna_v1 "$@"

mkdir -p "$DATA/answers_upload/$SPLIT"
"$PYTHON" "$ROOT/scripts/convert_mmbench_for_submission.py" \
    --annotation-file "$DATA/$SPLIT.tsv" \
    --result-dir "$DATA/answers/$SPLIT" \
    --upload-dir "$DATA/answers_upload/$SPLIT" \
    --experiment "$CKPT"
