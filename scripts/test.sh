#!/usr/bin/env bash
# Sets up, then runs lint, types and all tests.
#   bash scripts/test.sh             everything, with the versions of constraints.txt
#   bash scripts/test.sh --fast      without the tests marked slow
#   bash scripts/test.sh --oldest    with the oldest supported versions, in .venv-oldest (tests only, no lint)
# Further arguments go to pytest: bash scripts/test.sh --fast -k tokenizer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fast=no oldest=no
pytest_arguments=()
for argument in "$@"; do
    case "$argument" in
        --fast) fast=yes ;;
        --oldest) oldest=yes ;;
        *) pytest_arguments+=("$argument") ;;
    esac
done

venv=.venv
if [ "$oldest" = yes ]; then
    venv=.venv-oldest
    export VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt
fi
bash scripts/setup.sh
python="$venv/bin/python"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTHONDONTWRITEBYTECODE='' # hundreds of processes start: each would compile again what set-up has not compiled
export OMP_NUM_THREADS=1 # one thread a worker: two workers share two cores
started=$SECONDS

step() {
    printf '\n== %s\n' "$1"
    shift
    "$@" || {
        printf 'test.sh: FAILED: %s\n' "$*" >&2
        exit 1
    }
}

# run_tests TITLE MARKS DIST MORE: the tests with these marks, distributed the DIST way of pytest-xdist to as many workers as there are
# cores and MORE; pytest's exit code 5 (no test left by a -k) is no failure
run_tests() {
    local workers code=0
    workers="$("$python" -c 'import os; print(min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))')"
    workers=$((workers + $4))
    printf '\n== %s\n' "$1"
    "$python" -m pytest -q -n "$workers" --dist $3 -m "$2" ${pytest_arguments[@]+"${pytest_arguments[@]}"} || code=$?
    if [ "$code" = 5 ] && [ "${#pytest_arguments[@]}" -gt 0 ]; then
        return
    fi
    if [ "$code" != 0 ]; then
        printf 'test.sh: FAILED: %s (pytest exit code %s)\n' "$1" "$code" >&2
        exit 1
    fi
}

compiling='' # beside lint and types, which keep one core busy
if [ "$fast" = no ]; then
    compiled="$(mktemp)"
    "$python" tests/compile_deepspeed.py >"$compiled" 2>&1 &
    compiling=$!
fi
if [ "$oldest" = no ]; then
    step "ruff check" "$python" -m ruff check .
    step "ruff format --check" "$python" -m ruff format --check .
    step "mypy" "$python" -m mypy
fi
if [ -n "$compiling" ]; then
    wait "$compiling" || {
        cat "$compiled"
        printf 'test.sh: FAILED: compiling the parts of DeepSpeed\n' >&2
        exit 1
    }
    tail -n 1 "$compiled"
    rm -f "$compiled"
fi
# some fast tests wait for servers, and slow ones for other processes, which leaves room for a worker more
run_tests "fast tests" "not slow" worksteal 1
# the tests of a file share their runs of training;
# tests/conftest.py puts the longest files first
[ "$fast" = yes ] || run_tests "slow tests" "slow" "loadfile --no-loadscope-reorder" 1
printf '\ntest.sh: all passed in %s s\n' "$((SECONDS - started))"
