#!/usr/bin/env bash
# TextVQA: accuracy on the val split, OCR tokens in the prompt.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA="$EVAL_DIR/textvqa"
ANSWERS="$DATA/answers/$CKPT.jsonl"

ask model_vqa_loader "$ANSWERS" \
    --question-file "$DATA/llava_textvqa_val_v051_ocr.jsonl" \
    --image-folder "$DATA/train_images" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

"$PYTHON" -m llava.eval.eval_textvqa \
    --annotation-file "$DATA/TextVQA_0.5.1_val.json" \
    --result-file "$ANSWERS"
