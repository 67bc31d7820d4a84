#!/usr/bin/env bash
# Trains a text-only Qwen2 on answers to imitate (supervised fine-tuning): the common start of the other text runs.
#
#   bash scripts/train_sft_text.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns from answers of mixed quality to questions made on the spot. Results in runs/train_sft_text/.
#   bash scripts/train_sft_text.sh --config configs/sft_text_qwen2_0_5b.yaml --train_file data/sft/train.jsonl
#       Any key of the config can be given, e.g. --learning_rate 2e-6 --output_dir runs/mine.
#
# The first start makes .venv and installs there. One process a GPU, unless the environment says otherwise:
# NPROC (processes on this machine), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (several machines).
# All keys, after the set-up: .venv/bin/python -m r1_aqa_repro.train_sft_text --help
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "${BASH_SOURCE[0]}" "$@"
setup_project
train_text sft r1_aqa_repro.train_sft_text "$@"
