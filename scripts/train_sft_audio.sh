#!/usr/bin/env bash
# Trains an audio question answering model on the right answers (supervised fine-tuning): what R1-AQA compares GRPO with.
#
#   bash scripts/train_sft_audio.sh --config configs/sft_qwen2_audio_7b.yaml --train_file data/avqa/manifest.jsonl
#   bash scripts/train_sft_audio.sh --config configs/sft_lora_qwen2_audio_7b.yaml --train_file data/avqa/manifest.jsonl
#
# Any key of the config can be given, e.g. --learning_rate 2e-5 --output_dir runs/mine.
# The first start makes .venv and installs there. One process a GPU, unless the environment says otherwise:
# NPROC (processes on this machine), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (several machines).
# All keys, after the set-up: .venv/bin/python -m r1_aqa_repro.train_sft --help
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "${BASH_SOURCE[0]}" "$@"
option_value config "$@" >/dev/null || refuse "--config FILE is missing; configs/sft_qwen2_audio_7b.yaml is one. See --help."
setup_project
launch_training r1_aqa_repro.train_sft "$@"
