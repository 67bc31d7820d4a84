#!/usr/bin/env bash
# Collects this project's pinned packages as wheels, under 60 MB, for scripts/gpu_check.sh --wheels on a machine without
# an index: x86-64 Linux with a Python and a PyTorch (2.11 or newer) of its own.
#
#   bash scripts/collect_wheels.sh wheels            for Python 3.12
#   bash scripts/collect_wheels.sh wheels 3.13
#
# Left out, because they are large and that machine has them: torch with Triton, the CUDA libraries, sympy and networkx;
# numpy, scipy, scikit-learn, pandas, pyarrow, numba with llvmlite, matplotlib with what draws for it. Left out, because
# nothing there asks for them: av, bitsandbytes, gymnasium, tensorboard with grpcio, hf_xet, the tools that check source
# text.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"
[ $# -ge 1 ] && [ $# -le 2 ] || refuse "give a folder and perhaps a version of Python. See --help."
folder="$1" version="${2:-3.12}"
if compgen -G "$folder/*.whl" >/dev/null; then refuse "$folder holds wheels: two versions of one package don't install."; fi

left_out='torch|sympy|mpmath|networkx|numpy|scipy|scikit-learn|pandas|pyarrow|numba|llvmlite'
left_out+='|matplotlib|contourpy|cycler|fonttools|kiwisolver|pillow|pyparsing'
left_out+='|av|bitsandbytes|gymnasium|Farama-Notifications|tensorboard|tensorboard-data-server|grpcio|hf[-_]xet|absl-py|Werkzeug'
left_out+='|import-linter|grimp|mypy|mypy_extensions|ast_serialize|librt|ruff|types-.*'
source_only='deepspeed' # pure Python until it builds its parts

setup_project
mkdir -p -- "$folder"
pins="$(mktemp)"
trap 'rm -f -- "$pins"' EXIT
grep -vE "^(#|($left_out|$source_only)==)" "$REPO/constraints.txt" >"$pins"
platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for glibc in 17 24 26 27 28 31 34; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version "$version" "${platforms[@]}" --dest "$folder" --requirement "$pins"
grep -E "^($source_only)==" "$REPO/constraints.txt" |
    xargs "$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder"
du -shc -- "$folder"/*.whl | tail -n 1
