#!/usr/bin/env bash
# Makes .venv and installs llava with the exact versions of constraints.txt. A second call takes a moment.
#   bash scripts/setup.sh                                   the versions that are tested (.venv)
#   VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt bash scripts/setup.sh    the oldest supported transformers
# PYTHON names the interpreter (default: python3, or the newest supported one that is found). No Python package is
# installed outside the folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV="${VENV:-.venv}"
CONSTRAINTS="${CONSTRAINTS:-constraints.txt}"
EXTRAS="${EXTRAS:-train,serve,eval,video,dev,test-serve}"
STAMP="$VENV/.llava-setup"   # digest of what was installed, and the seconds it took
MAKING="$VENV/.llava-making" # there while an installation runs; left behind by one that was broken off

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; }

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
        if supported "$name"; then
            command -v "$name"
            return
        fi
        [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not a Python of version 3.10 or newer"
    done
    fail "no Python of version 3.10 or newer was found; install one, or name it with PYTHON=/path/to/python3"
}

digest() { { cat pyproject.toml "$CONSTRAINTS"; echo "$EXTRAS"; pwd; } | cksum | tr -d '\n'; }

works() { "$VENV/bin/python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null; }

make_venv() {
    local python
    python="$(find_python)"
    say "making $VENV with $("$python" --version) ($python)"
    if ! "$python" -m venv "$VENV" 2>/dev/null; then
        rm -rf "$VENV"
        # Debian keeps the venv module in a package of its own
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "this Python has no venv module; installing python3-venv"
            apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        fi
        "$python" -m venv "$VENV" || fail "python -m venv failed; install the venv module (Debian: python3-venv)"
    fi
}

# alive WORDS COMMAND...: runs a command and says every ten seconds that it is still running
alive() {
    local words="$1" began=$SECONDS teller code=0
    shift
    (while sleep 10 >/dev/null 2>&1; do say "$words ($((SECONDS - began)) s)"; done) &
    teller=$!
    "$@" || code=$?
    kill "$teller" 2>/dev/null && wait "$teller" 2>/dev/null || true
    return "$code"
}

# install ARGUMENT...: with uv, which takes a fraction of pip's time, or with pip where uv cannot be had
install() {
    if [ -x "$VENV/bin/uv" ]; then
        # uv does not read pip's settings: hand it the folders with local wheels and the extra indexes
        UV_PYTHON_DOWNLOADS=never UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(pip_setting find-links)}}" \
            "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" "$@"
    else
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

pip_setting() { "$VENV/bin/python" -m pip config get "global.$1" 2>/dev/null | tr '\n ' ',,' | sed 's/,*$//' || true; }

install_all() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -c "$CONSTRAINTS" uv 2>/dev/null ||
        say "uv could not be installed; going on with pip, which is slower"
    # uv leaves the packages uncompiled, and with PYTHONDONTWRITEBYTECODE=1 in the environment every later start would
    # compile some 4000 modules again (seen: 30 s instead of 10); what the programs import is compiled here, once
    install -c "$CONSTRAINTS" -e ".[$EXTRAS]" && PYTHONDONTWRITEBYTECODE='' "$VENV/bin/python" - <<'PYTHON'
import matplotlib, numpy, PIL, sentencepiece, sklearn, torch, transformers  # noqa: E401
import llava.train.train  # noqa: F401
print(f"setup: torch {torch.__version__}, transformers {transformers.__version__}")
PYTHON
}

main() {
    local started=$SECONDS
    if [ -f "$STAMP" ] && [ ! -e "$MAKING" ] && works && [ "$(head -n 1 "$STAMP")" = "$(digest)" ]; then
        say "$VENV is up to date"
        return
    fi
    if [ -e "$VENV" ] && { [ -e "$MAKING" ] || ! works; }; then
        say "$VENV is broken or half made; making it again"
        rm -rf "$VENV"
    fi
    [ -e "$VENV" ] || make_venv
    touch "$MAKING"
    rm -f "$STAMP"
    say "installing llava[$EXTRAS] with the versions of $CONSTRAINTS (a minute or two, mostly downloads)"
    if ! alive "still installing" install_all; then
        say "the installation failed; once more, in a new $VENV"
        rm -rf "$VENV"
        make_venv
        touch "$MAKING"
        alive "still installing" install_all || fail "the packages could not be installed; the error stands above"
    fi
    rm -f "$MAKING"
    printf '%s\n%s\n' "$(digest)" "$((SECONDS - started))" >"$STAMP"
    say "done in $((SECONDS - started)) s"
}

main
