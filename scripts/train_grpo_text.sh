#!/usr/bin/env bash
# Trains a text-only Qwen2 by GRPO, with a reward model, rule rewards, or both.
#
#   bash scripts/train_grpo_text.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns from a reward model, while the log also shows what its answers
#       are truly worth. Results in runs/train_grpo_text/. The start and the reward model come from
#       runs/train_sft_text/ and runs/train_reward_model/, and are made there first where they are missing.
#   bash scripts/train_grpo_text.sh --config configs/grpo_text_qwen2_7b.yaml --train_file data/prompts.jsonl \
#       --reward_model_name_or_path runs/reward_model_qwen2_7b/final
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
train_text train_grpo_text "$@"
