#!/usr/bin/env bash
# VizWiz: the file that the server took.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA="$EVAL_DIR/vizwiz"
ANSWERS="$DATA/answers/$CKPT.jsonl"

ask model_vqa_loader "$ANSWERS" \
    --question-file "$DATA/llava_test.jsonl" \
    --image-folder "$DATA/test" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

"$PYTHON" "$ROOT/scripts/convert_vizwiz_for_submission.py" \
    --annotation-file "$DATA/llava_test.jsonl" \
    --result-file "$ANSWERS" \
    --result-upload-file "$DATA/answers_upload/$CKPT.json"
