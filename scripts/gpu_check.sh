#!/usr/bin/env bash
# Tells in ten minutes on one GPU how exact and how fast this code is there, with randomly initialised weights.
#
#   bash scripts/gpu_check.sh --json gpu.json                      in .venv, which the first start makes
#   bash scripts/gpu_check.sh --json gpu.json --wheels wheels      a bare machine, no index: its own Python and PyTorch
#   bash scripts/gpu_check.sh --geometry tiny                      in three minutes on a CPU
#
# --wheels DIR   what scripts/collect_wheels.sh has put there is installed into DIR/site, beside the machine's packages;
#                PYTHON names another interpreter than python3
# The other options: --help after `.venv/bin/python scripts/gpu_check.py`.
set -euo pipefail
python="${PYTHON:-python3}"
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"

wheels="$(option_value wheels "$@" || true)"
if [ -z "$wheels" ]; then
    setup_project
else
    PYTHON="$python"
    compgen -G "$wheels/*.whl" >/dev/null || refuse "$wheels: no wheels are there. scripts/collect_wheels.sh collects them."
    "$PYTHON" -c 'import matplotlib, numba, numpy, pandas, pyarrow, scipy, sklearn, torch' ||
        refuse "$PYTHON lacks what is too large for wheels (above). Install it, or name another interpreter in PYTHON."
    echo "Installing $wheels/*.whl into $wheels/site."
    pip_install --quiet --no-index --no-deps --no-compile --upgrade --target "$wheels/site" "$wheels"/*.whl
    export PYTHONPATH="$(cd -- "$wheels/site" && pwd)"
    PATH="$PYTHONPATH/bin:$PATH" # ninja, with which DeepSpeed builds its parts
fi
PATH="$(dirname -- "$(command -v "$PYTHON")"):$PATH"
exec "$PYTHON" "$REPO/scripts/gpu_check.py" "$@"
