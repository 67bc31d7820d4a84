#!/usr/bin/env bash
# Trains a reward model on preference pairs: a Qwen2 with a scalar head, by the Bradley-Terry loss.
#
#   bash scripts/train_reward_model.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns which of two answers is better; a control learns from shuffled
#       labels. Results in runs/train_reward_model/.
#   bash scripts/train_reward_model.sh --config configs/reward_model_qwen2_7b.yaml --train_file data/preferences/train.jsonl
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
train_text train_reward_model "$@"
