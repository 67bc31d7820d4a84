#!/usr/bin/env bash
# Trains an audio question answering model with GRPO.
#
#   bash scripts/train_grpo_audio.sh
#       the embedded run: a small Qwen2-Audio and synthetic questions, on one CPU core, with nothing to
#       download but Python packages. Prints accuracy before and after; results in runs/embedded/.
#   bash scripts/train_grpo_audio.sh --config configs/grpo_qwen2_audio_7b.yaml --train_file data/avqa/manifest.jsonl
#       R1-AQA's own run.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"
setup_project

if is_embedded_run "$@"; then
    exec "$PYTHON" "$REPO/scripts/embedded_run.py" "$@"
fi

if ! config="$(option_value config "$@")"; then
    config="$REPO/configs/grpo_embedded.yaml"
    set -- --config "$config" "$@"
fi
# The embedded model is far too small to gain from several devices; its results are those of one process.
case "$config" in *embedded*) export NPROC="${NPROC:-1}" ;; esac
launch_training r1_aqa_repro.train_grpo "$@"
