#!/usr/bin/env bash
# The reproduction of R1-AQA, from data to the paper's verdict: every arm with several seeds, and a report.
#
#   bash scripts/reproduce_r1_aqa.sh --config configs/reproduce_r1_aqa.yaml
#       the real one: 8 GPUs of 80 GB, AVQA and MMAU as docs/data.md has them
#   bash scripts/reproduce_r1_aqa.sh --rehearse
#       the same stages with embedded data, a tiny model and few steps, on two CPU cores
#
#   ... --check          everything that is wrong with the configuration, without a GPU, in a minute
#   ... --status         every stage: done, running, to do, or stale, and why
#   ... --only STAGE     that stage alone, such as train/grpo/seed-42; several, separated by blanks
#   ... --from STAGE     that stage anew, and what depends on it
#   ... --slurm          a job a stage, with the resources under `slurm` in the configuration
#   ... --cores N        processes at the same time (default: what a stage takes; a rehearsal: all cores)
#
# The first start makes .venv and installs there. Interrupted, the same command goes on. docs/reproduction.md explains.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"
setup_project reproduce
export PATH="$VENV/bin:$PATH" # DeepSpeed looks for ninja there
exec "$PYTHON" "$REPO/scripts/reproduce_r1_aqa.py" "$@"
