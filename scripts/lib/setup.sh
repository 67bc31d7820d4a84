# shellcheck shell=bash
# Sourced by every script: `setup_project [dev|reproduce]` makes .venv when that is not yet done, `launch_training MODULE args...`
# starts a run. Sourcing alone defines functions and exports the settings below; nothing is installed.

REPO="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)"
VENV="$REPO/.venv"
PYTHON="$VENV/bin/python"

# One thread a process unless asked otherwise. On few cores, threads that wait for each other beside other work have
# slowed steps down 30 times; and the order of a sum, hence the last bits of a result, depends on the number of threads:
# runs repeat byte for byte only at a fixed one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# The tokenizers' own threads don't survive the fork of a data loader; without this each run warns about it.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
# Completions of other lengths at every step leave holes in the GPU's memory that no tensor fits into; with this, PyTorch
# moves the boundaries of what it holds instead.
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF-expandable_segments:True}"
# Nothing is reported to anybody (TRL follows this setting too).
export HF_HUB_DISABLE_TELEMETRY=1

refuse() { # refuse TEXT: exit code 2, nothing was started
    printf '%s: %s\n' "$(basename -- "$0")" "$1" >&2
    exit 2
}

# --- Arguments --------------------------------------------------------------------------------------------------------

show_help_if_asked() { # show_help_if_asked ARGS...: the comment at the top of a script is its help
    local argument name
    for argument in "$@"; do
        case "$argument" in
            -h | --help)
                sed -n '2,/^[^#]/{ s/^# \{0,1\}//p; }' "$0"
                name="$(basename -- "$0" .sh)"
                case "$name" in train_*) training_help "r1_aqa_repro.${name%_audio}" ;; esac
                exit 0
                ;;
        esac
    done
}

training_help() { # training_help MODULE: what holds for every training
    cat <<END

Any key of the config can be given, e.g. --learning_rate 2e-6 --output_dir runs/mine.
The first start makes .venv and installs there. One process a GPU, unless the environment says otherwise:
NPROC (processes on this machine), NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (several machines); docs/distributed.md.
All keys, after the set-up: .venv/bin/python -m $1 --help
END
}

option_value() { # option_value NAME ARGS...: prints the value of `--NAME value` or `--NAME=value`; 1 if it isn't there
    local name="__$1"
    shift
    while [ $# -gt 0 ]; do
        if [ "$(printf '%s' "${1%%=*}" | tr - _)" = "$name" ]; then # --train-file is --train_file
            case "$1" in
                *=*) printf '%s\n' "${1#*=}" ;;
                *) printf '%s\n' "${2-}" ;;
            esac
            return 0
        fi
        shift
    done
    return 1
}

is_embedded_run() { # is_embedded_run ARGS...: whether neither a config nor data or a model of one's own is named
    local option
    for option in config train_file model_name_or_path; do
        if option_value "$option" "$@" >/dev/null; then return 1; fi
    done
}

# --- Setting up -------------------------------------------------------------------------------------------------------
#
# .venv/.setup-done     a checksum of what decides the installation, then the extras installed; written last
# .venv/.setup-running  there while a set-up works: whoever finds it knows that the last one was cut short
# .venv/setup.log       what pip said

setup_project() { # setup_project [dev|reproduce]; dev has all of them
    local extras="$*" fingerprint
    # The path counts too: a copied checkout would go on importing the packages of the one it was copied from.
    fingerprint="$({ cat -- "$REPO/pyproject.toml" "$REPO/constraints.txt" && printf '%s' "$REPO"; } | cksum)"
    is_set_up && return
    (
        # Of two scripts started together one waits, and finds the work done. pip inherits the lock, so that even when
        # this shell is killed nobody else writes to .venv before pip is gone.
        if command -v flock >/dev/null; then
            exec 9<"$REPO"
            flock --nonblock 9 || { echo "Waiting for another set-up of this folder." && flock 9; }
        fi
        is_set_up || install_project
    )
}

is_set_up() {
    local done_file="$VENV/.setup-done" installed_fingerprint="" installed_extras=""
    [ -x "$PYTHON" ] && [ ! -e "$VENV/.setup-running" ] && [ -r "$done_file" ] || return 1
    { read -r installed_fingerprint && read -r installed_extras || true; } <"$done_file"
    [ -n "$extras" ] || extras="$installed_extras" # an update keeps the extras that were there
    [ "$installed_fingerprint" = "$fingerprint" ] && { [ "$installed_extras" = "$extras" ] || [ "$installed_extras" = dev ]; }
}

install_project() {
    local base_python unusable=false began=$SECONDS
    trap 'echo && echo "Interrupted; the next start begins anew." >&2; exit 130' INT
    base_python="$(find_python)" || exit

    if [ -e "$VENV/.setup-running" ] || { [ -e "$VENV" ] && [ ! -x "$PYTHON" ]; }; then unusable=true; fi
    mkdir -p -- "$VENV"
    touch -- "$VENV/.setup-running"
    if $unusable; then
        echo "The last set-up was cut short, or the Python behind .venv is gone: making it anew."
        # All but the mark: should this be cut short as well, the next start must know.
        find "$VENV/" -mindepth 1 -maxdepth 1 ! -name .setup-running -exec rm -rf -- {} +
    fi
    rm -f -- "$VENV/.setup-done" "$VENV/setup.log"

    echo "Setting up $VENV, once; this takes a few minutes."
    [ -x "$PYTHON" ] || logged "virtual environment, $("$base_python" --version)" "$base_python" -m venv "$VENV"
    # PyTorch first and alone: it is the one package for which it matters where it comes from.
    install_torch
    logged "all other packages" pip_install -c "$REPO/constraints.txt" -e "$REPO${extras:+[$extras]}"

    printf '%s\n' "$fingerprint" "$extras" >"$VENV/.setup-done"
    rm -f -- "$VENV/.setup-running"
    echo "Set up in $((SECONDS - began)) s."
}

find_python() { # prints the first Python on the PATH that will do; 3.11, which the results were made with, goes first
    local candidate
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    refuse "no Python 3.11 or newer with its venv module is on the PATH. Install one (Debian and Ubuntu: apt install \
python3 python3-venv; conda: conda create -n r1-aqa python=3.11, then conda activate r1-aqa) and start this again."
}

# Without a GPU the plain package would bring gigabytes of CUDA libraries along. The CPU build is therefore asked for by
# its name: wherever pip looks on this machine, and if it isn't there in PyTorch's own index, for this one package.
install_torch() {
    local version
    version="$(sed -n 's/^torch==//p' "$REPO/constraints.txt")"
    case "$("$PYTHON" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null)" in
        "$version" | "$version"+*) return ;; # an update, or a .venv that its owner has prepared
    esac
    if nvidia-smi -L >/dev/null 2>&1; then
        logged "PyTorch $version with CUDA" pip_install "torch==$version"
        "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
            echo "  Warning: this PyTorch can't use the GPU (a CPU build, or the driver is too old for it)." >&2
    elif [ "$(uname -s)" != Linux ]; then
        logged "PyTorch $version" pip_install "torch==$version" # elsewhere the plain package is the CPU build
    elif (pip_install --no-deps "torch==$version+cpu") >>"$VENV/setup.log" 2>&1; then
        echo "  PyTorch $version, CPU build from pip's own sources"
    else
        logged "PyTorch $version, CPU build from download.pytorch.org" \
            pip_install --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==$version+cpu"
    fi
}

pip_install() {
    "$PYTHON" -m pip install --disable-pip-version-check "$@"
}

logged() { # logged WHAT COMMAND...: one line with the time taken; on failure the end of the log and exit code 1
    local what="$1" began=$SECONDS log="$VENV/setup.log"
    shift
    printf '  %s ... ' "$what"
    if ("$@") >>"$log" 2>&1; then # in a subshell: what the trap above says must not go to the log
        echo "$((SECONDS - began)) s"
    else
        echo "failed"
        { echo "The last lines of $log:" && tail -n 20 -- "$log"; } >&2
        exit 1
    fi
}

# --- Starting a run ---------------------------------------------------------------------------------------------------

# One process a GPU, or NPROC; on NNODES machines. `exec`, so that Ctrl-C and a scheduler's SIGTERM reach the run itself.
launch_training() { # launch_training MODULE args...
    local module="$1" gpus processes nodes="${NNODES:-1}" launcher
    shift
    export PATH="$VENV/bin:$PATH" # DeepSpeed looks for ninja there
    gpus="$(count_gpus)"
    if [ "$gpus" -gt 0 ] && compgen -G "$VENV/lib/python3*/site-packages/torch-*+cpu.dist-info" >/dev/null; then
        refuse "this machine has a GPU, but .venv holds the CPU build of PyTorch (made on a machine without one?). Remove \
.venv and start again here; or train on the CPU, with CUDA_VISIBLE_DEVICES= in front of the command."
    fi
    processes="${NPROC:-$((gpus > 0 ? gpus : 1))}"
    is_positive "$processes" || refuse "NPROC=$processes: the number of processes must be 1 or more."
    is_positive "$nodes" || refuse "NNODES=$nodes: the number of machines must be 1 or more."

    if [ "$nodes" -gt 1 ]; then
        [ -n "${MASTER_ADDR:-}" ] || refuse "NNODES=$nodes needs MASTER_ADDR, the address of the machine with NODE_RANK=0."
        [ -n "${NODE_RANK:-}" ] || refuse "NNODES=$nodes needs NODE_RANK: 0 to $((nodes - 1)), another on each machine."
        launcher=(--nnodes "$nodes" --node-rank "$NODE_RANK"
            --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
    elif [ "$processes" -eq 1 ]; then
        exec "$PYTHON" -m "$module" "$@"
    elif [ -n "${MASTER_PORT:-}" ]; then
        launcher=(--master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "$MASTER_PORT")
    else
        launcher=(--standalone) # finds a free port
    fi
    # torchrun, with this project's exit codes
    exec "$PYTHON" -m r1_aqa_repro.launch "${launcher[@]}" --nproc-per-node "$processes" -m "$module" "$@"
}

train_text() { # train_text NAME args...: the embedded run of an entry point, or the run that the arguments describe
    local name="$1"
    shift
    show_help_if_asked "$@"
    setup_project
    if is_embedded_run "$@"; then
        exec "$PYTHON" "$REPO/scripts/embedded_text.py" "$name" "$@"
    fi
    option_value config "$@" >/dev/null || refuse "--config FILE is missing. See --help."
    launch_training "r1_aqa_repro.$name" "$@"
}

is_positive() {
    case "$1" in "" | 0* | *[!0-9]*) return 1 ;; esac
}

count_gpus() {
    local listed
    listed="$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)"
    if [ "$listed" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        case "$CUDA_VISIBLE_DEVICES" in
            "" | -1) listed=0 ;;
            *) listed="$(printf '%s\n' "$CUDA_VISIBLE_DEVICES" | awk -F, '{ print NF }')" ;;
        esac
    fi
    printf '%s\n' "$listed"
}
