#!/usr/bin/env bash
# Trains a text-only Qwen2 on answers to imitate (supervised fine-tuning): the common start of the other text runs.
#
#   bash scripts/train_sft_text.sh
#       the embedded run, on one CPU core, with nothing to download but Python packages:
#       a small Qwen2 learns from answers of mixed quality to questions made on the spot. Results in runs/train_sft_text/.
#   bash scripts/train_sft_text.sh --config configs/sft_text_qwen2_0_5b.yaml --train_file data/sft/train.jsonl
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
train_text train_sft_text "$@"
