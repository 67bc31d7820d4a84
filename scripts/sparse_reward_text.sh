#!/usr/bin/env bash
# What a sparse reward needs is patience: GRPO from a model whose answer is right once in a hundred times, on one CPU core.
#
#   bash scripts/sparse_reward_text.sh
#       accuracy over steps of three runs: small groups, small groups with dynamic sampling, large groups.
#       Results in runs/sparse_reward_text/.
#
# Also --seed N and --output_dir DIR. The first start makes .venv and installs there.
# Interrupted, the same command goes on.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"
setup_project
exec "$PYTHON" "$REPO/scripts/sparse_reward_text.py" "$@"
