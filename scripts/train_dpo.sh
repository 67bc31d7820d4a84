#!/usr/bin/env bash
# Trains a text-only Qwen2 on preference pairs by direct preference optimisation (DPO).
#
#   bash scripts/train_dpo.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns from preference pairs made on the spot. Results in runs/train_dpo/.
#   bash scripts/train_dpo.sh --config configs/dpo_qwen2_7b.yaml --train_file data/preferences/train.jsonl
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
train_text train_dpo "$@"
