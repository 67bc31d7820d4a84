#!/usr/bin/env bash
# Trains a text-only Qwen2 on preference pairs by direct preference optimisation (DPO).
#
#   bash scripts/train_dpo.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns from preference pairs made on the spot. Results in runs/train_dpo/.
#   bash scripts/train_dpo.sh --config configs/dpo_qwen2_7b.yaml --train_file data/preferences/train.jsonl
#       Any key of the config can be given, e.g. --learning_rate 2e-6 --output_dir runs/mine.
#
# The first start makes .venv and installs there. One process a GPU, unless the environment says otherwise:
# NPROC (processes on this machine), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (several machines).
# All keys, after the set-up: .venv/bin/python -m r1_aqa_repro.train_dpo --help
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "${BASH_SOURCE[0]}" "$@"
setup_project
train_text dpo r1_aqa_repro.train_dpo "$@"
