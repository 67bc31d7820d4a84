#!/usr/bin/env bash
# Trains a reward model on preference pairs: a Qwen2 with a scalar head, by the Bradley-Terry loss.
#
#   bash scripts/train_reward_model.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns which of two answers is better; a control learns from shuffled
#       labels. Results in runs/train_reward_model/.
#   bash scripts/train_reward_model.sh --config configs/reward_model_qwen2_7b.yaml --train_file data/preferences/train.jsonl
#       Any key of the config can be given, e.g. --learning_rate 2e-6 --output_dir runs/mine.
#
# The first start makes .venv and installs there. One process a GPU, unless the environment says otherwise:
# NPROC (processes on this machine), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (several machines).
# All keys, after the set-up: .venv/bin/python -m r1_aqa_repro.train_reward_model --help
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "${BASH_SOURCE[0]}" "$@"
setup_project
train_text reward_model r1_aqa_repro.train_reward_model "$@"
