#!/usr/bin/env bash
# Post-training in two stages, as that of Qwen2.5 (arXiv 2412.15115, 4.2 and 4.3), on one CPU core.
#
#   bash scripts/two_stage_text.sh
#       DPO on maths and code with pairs that rule rewards have made; then GRPO for helpfulness and safety with a
#       reward model and a rule. One table shows the start, each stage alone and both. Results in runs/two_stage_text/.
#   bash scripts/two_stage_text.sh --variant best_of_n
#       the second stage by best of n with the reward model, then DPO. Results in runs/two_stage_text_best_of_n/.
#
# Also --seed N and --output_dir DIR. The first start makes .venv and installs there.
# Interrupted, the same command goes on.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"
setup_project
exec "$PYTHON" "$REPO/scripts/two_stage_text.py" "$@"
