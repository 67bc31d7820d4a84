#!/usr/bin/env bash
# Trains a text-only Qwen2 by Kahneman-Tversky optimisation (KTO) on answers judged good or bad.
#
#   bash scripts/train_kto.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns from the two answers of each preference pair, judged apart.
#       Results in runs/train_kto/.
#   bash scripts/train_kto.sh --config configs/kto_qwen2_7b.yaml --train_file data/preferences/train.jsonl
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
train_text train_kto "$@"
