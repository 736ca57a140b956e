#!/usr/bin/env bash
# ScienceQA in CHUNKS (8) parts, one on each GPU; sqa_eval_gather.sh joins and scores them.
source "$(dirname "${BASH_SOURCE[0]}")/v1_5/eval/common.sh"

CHUNKS="${CHUNKS:-8}"
DATA="$EVAL_DIR/scienceqa"

pids=()
for ((k = 0; k < CHUNKS; k++)); do
    CUDA_VISIBLE_DEVICES="$k" ask model_vqa_science "$DATA/answers/${CKPT}_chunk$k.jsonl" \
        --question-file "$DATA/llava_test_CQM-A.json" \
        --image-folder "$DATA/images/test" \
        --conv-mode llava_v1 --num-chunks "$CHUNKS" --chunk-idx "$k" "$@" &
    pids+=("$!")
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
exit "$failed"
