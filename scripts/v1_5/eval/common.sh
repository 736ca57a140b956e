# What the evaluation scripts share: sourced by them, not run. docs/evaluation_tasks.md says where the data come from.
#
# Paths can be set from outside; flags behind a script's name go to the program that asks, and win over the script's:
#   MODEL_PATH=./checkpoints/mine bash scripts/v1_5/eval/pope.sh --temperature 0.2
# EVAL_DIR is the folder of the benchmarks, CKPT the name in answers' file names (default: the model's), PYTHON the
# interpreter. CUDA_VISIBLE_DEVICES lists the GPUs that share the questions (default: the first).
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" # this checkout, also when another llava is installed

PYTHON="${PYTHON:-python}"
EVAL_DIR="${EVAL_DIR:-./playground/data/eval}"
MODEL_PATH="${MODEL_PATH:-liuhaotian/llava-v1.5-13b}"
CKPT="${CKPT:-$(basename "$MODEL_PATH")}"

# ask PROGRAM ANSWERS FLAG...: ask all questions in one process
ask() {
    local program="$1" answers="$2"
    shift 2
    mkdir -p "$(dirname "$answers")"
    "$PYTHON" -m "llava.eval.$program" --model-path "$MODEL_PATH" --answers-file "$answers" "$@"
}

# ask_in_chunks PROGRAM ANSWERS FLAG...: a process for each GPU of CUDA_VISIBLE_DEVICES, each asking its part of the
# questions; the parts, ANSWERS without .jsonl/N_K.jsonl, are joined to ANSWERS in their order. Stops if one fails.
ask_in_chunks() {
    local program="$1" answers="$2" gpus pids=() parts=() k failed=0
    shift 2
    IFS=',' read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-0}"
    for k in "${!gpus[@]}"; do
        parts+=("${answers%.jsonl}/${#gpus[@]}_$k.jsonl")
        CUDA_VISIBLE_DEVICES="${gpus[$k]}" ask "$program" "${parts[$k]}" \
            --num-chunks "${#gpus[@]}" --chunk-idx "$k" "$@" &
        pids+=("$!")
    done
    for k in "${pids[@]}"; do wait "$k" || failed=1; done
    if [ "$failed" = 1 ]; then
        printf '%s: a part failed, see above; the same command goes on where it stopped\n' "$(basename "$0")" >&2
        exit 1
    fi
    cat "${parts[@]}" >"$answers"
}
