#!/usr/bin/env bash
# Trains an audio question answering model on the right answers (supervised fine-tuning): what R1-AQA compares GRPO with.
#
#   bash scripts/train_sft_audio.sh --config configs/sft_qwen2_audio_7b.yaml --train_file data/avqa/manifest.jsonl
#   bash scripts/train_sft_audio.sh --config configs/sft_lora_qwen2_audio_7b.yaml --train_file data/avqa/manifest.jsonl
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"
option_value config "$@" >/dev/null || refuse "--config FILE is missing; configs/sft_qwen2_audio_7b.yaml is one. See --help."
setup_project
launch_training r1_aqa_repro.train_sft "$@"
