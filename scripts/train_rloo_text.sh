#!/usr/bin/env bash
# Trains a text-only Qwen2 by RLOO, with a reward model, rule rewards, or both.
#
#   bash scripts/train_rloo_text.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns from a reward model, while the log also shows what its answers
#       are truly worth.
#       Results in runs/train_rloo_text/.
#   bash scripts/train_rloo_text.sh --config configs/rloo_text_qwen2_7b.yaml --train_file data/prompts.jsonl \
#       --reward_model_name_or_path runs/reward_model_qwen2_7b/final
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
train_text train_rloo_text "$@"
