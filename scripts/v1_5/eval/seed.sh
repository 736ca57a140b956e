#!/usr/bin/env bash
# SEED-Bench: accuracy over images and video frames, and the submission.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA="$EVAL_DIR/seed_bench"
ANSWERS="$DATA/answers/$CKPT/merge.jsonl"

ask_in_chunks model_vqa_loader "$ANSWERS" \
    --question-file "$DATA/llava-seed-bench.jsonl" \
    --image-folder "$DATA" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

mkdir -p "$DATA/answers_upload"
"$PYTHON" "$ROOT/scripts/convert_seed_for_submission.py" \
    --annotation-file "$DATA/SEED-Bench.json" \
    --result-file "$ANSWERS" \
    --result-upload-file "$DATA/answers_upload/$CKPT.jsonl"
