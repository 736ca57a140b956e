#!/usr/bin/env bash
# From a bare machine to a small LLaVA that reads handwriting: installs, makes data, trains, evaluates, chats.
#   bash scripts/quickstart.sh [--lora] [--device cuda] [--fresh] [--output FOLDER]
#   bash scripts/quickstart.sh --smol      of real, pretrained parts, in runs/smol: docs/quickstart_smol.md
# Everything lands in runs/quickstart; a second run reuses what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
seconds="$(sed -n 2p .venv/.llava-setup)" # what the installation took, now or when it ran
threads=1 # one core for the model, one for the data loader; two threads on tensors this small lose more than they gain
# as soon as anything else runs (seen: several times slower, also with the larger model of --smol)
case " $* " in *" --smol "*) threads="$(nproc)" ;; esac
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
export PYTHONDONTWRITEBYTECODE='' # its programs import the same packages: compiled once
exec .venv/bin/python -m playground.digits.quickstart --setup-seconds "$seconds" "$@"
