#!/usr/bin/env bash
# LLaVA-Bench (wild): a judge compares with the reference answers. JUDGE names the model that judges.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

DATA="$EVAL_DIR/llava-bench-in-the-wild"
ANSWERS="$DATA/answers/$CKPT.jsonl"
REVIEWS="$DATA/reviews/$CKPT.jsonl"
: "${JUDGE:?name the judge, JUDGE=model; the one of the published numbers is shut down}"
: "${RULE:=$ROOT/llava/eval/table/rule.json}" # the reference's rules; without the file, those of this package

ask model_vqa "$ANSWERS" \
    --question-file "$DATA/questions.jsonl" \
    --image-folder "$DATA/images" \
    --temperature 0 --conv-mode vicuna_v1 "$@"

mkdir -p "$DATA/reviews"
rule=()
if [ -f "$RULE" ]; then rule=(--rule "$RULE"); fi
"$PYTHON" -m llava.eval.eval_gpt_review_bench \
    --judge-model "$JUDGE" \
    --question "$DATA/questions.jsonl" \
    --context "$DATA/context.jsonl" \
    ${rule[@]+"${rule[@]}"} \
    --answer-list "$DATA/answers_gpt4.jsonl" "$ANSWERS" \
    --output "$REVIEWS"
"$PYTHON" -m llava.eval.summarize_gpt_review -f "$REVIEWS"
