#!/usr/bin/env bash
# What more training is worth to a small real audio model: SFT against GRPO, at equal compute and equal data.
#
#   bash scripts/small_study.sh --encoder openai/whisper-base --language-model Qwen/Qwen2-0.5B-Instruct \
#       --data clips.csv --audio clips/
#       composes a Qwen2-Audio of the two; then, for each seed: questions about the labelled clips, alignment, an SFT
#       warm start, and from there more SFT, GRPO and GRPO with thoughts. Results in runs/small_study/: results.md,
#       results.html, results.json, accuracy.png.
#   ... --quick
#       smaller numbers, for a first look.
#
# Also --seeds N, --first-seed N, --half report|tune, --jobs N, --config FILE, --preset NAME and --output_dir DIR.
# The first start makes .venv and installs there. Interrupted, the same command goes on.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"
setup_project
exec "$PYTHON" "$REPO/scripts/small_study.py" "$@"
