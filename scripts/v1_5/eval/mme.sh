#!/usr/bin/env bash
# MME: perception and cognition.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA="$EVAL_DIR/MME"
ANSWERS="$DATA/answers/$CKPT.jsonl"

ask model_vqa_loader "$ANSWERS" \
    --question-file "$DATA/llava_mme.jsonl" \
    --image-folder "$DATA/MME_Benchmark_release_version" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

"$PYTHON" -m llava.eval score mme --data-dir "$DATA" --answers "$ANSWERS"
