#!/usr/bin/env bash
# Trains a text-only Qwen2 by PPO: actor, critic, reference and reward.
#
#   bash scripts/train_ppo_text.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns from a reward model, while the log also shows what its answers
#       are truly worth. Results in runs/train_ppo_text/.
#   bash scripts/train_ppo_text.sh --config configs/ppo_text_qwen2_7b.yaml --train_file data/prompts.jsonl \
#       --reward_model_name_or_path runs/reward_model_qwen2_7b/final
#       Any key of the config can be given, e.g. --learning_rate 2e-6 --output_dir runs/mine.
#
# The first start makes .venv and installs there. One process a GPU, unless the environment says otherwise:
# NPROC (processes on this machine), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (several machines).
# All keys, after the set-up: .venv/bin/python -m r1_aqa_repro.train_ppo_text --help
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "${BASH_SOURCE[0]}" "$@"
setup_project
train_text ppo r1_aqa_repro.train_ppo_text "$@"
