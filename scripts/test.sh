#!/usr/bin/env bash
# Checks the project: set-up, lint, format, types, tests. Stops at the first stage that fails, with its exit code.
#
#   bash scripts/test.sh                everything but the long tests
#   bash scripts/test.sh --full         also the tests marked slow (kills, rehearsals, documentation) and
#                                       distributed (two processes)
#   bash scripts/test.sh -m MARKS       the tests that pytest selects by these marks, such as slow
#   bash scripts/test.sh --setup-only   makes .venv, with the tools for the checks, and stops
#
# Tests run on all cores; distributed ones, which take several themselves, come afterwards, one by one.
# Further arguments go to pytest: bash scripts/test.sh -k rewards
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "$@"

fast="not slow and not distributed"
chosen="$fast"
setup_only=false
while [ $# -gt 0 ]; do
    case "$1" in
        --full) chosen="slow or not slow" ;;
        -m) [ $# -gt 1 ] || refuse "-m needs an expression of marks"; chosen="$2" && shift ;;
        --setup-only) setup_only=true ;;
        *) break ;;
    esac
    shift
done
for argument in "$@"; do
    if [ "$argument" = -m ]; then refuse "-m goes before the arguments for pytest."; fi
done

summary=""
closing_lines=""
any_ran=false
print_summary() {
    printf '\n%s\n%s' "$summary" "$closing_lines"
}

stage() { # stage NAME COMMAND...
    local name="$1" began=$SECONDS code=0
    shift
    printf '\n== %s\n' "$name"
    "$@" || code=$?
    summary+="$(printf '%-11s %-18s %4d s' "$name" "$([ $code = 0 ] && echo passed || echo "failed (exit $code)")" \
        $((SECONDS - began)))"$'\n'
    [ $code = 0 ] || { print_summary && exit $code; }
}

# One process a core, if each finds 3 GB of memory: that is what the runs among the tests may take.
count_workers() {
    local cores memory
    cores="$(env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)" # nproc obeys that variable
    memory="$(awk '/^MemAvailable/ { print int($2 / 3000000) }' /proc/meminfo 2>/dev/null || true)"
    if [ "${memory:-$cores}" -lt "$cores" ]; then cores="$memory"; fi
    if [ "$cores" -gt 1 ]; then echo "$cores"; else echo 0; fi # 0: in pytest's own process
}

run_tests() { # run_tests MARKS ARGS...: pytest, whose closing line is kept for the summary
    local marks="$1" code=0 log
    shift
    log="$(mktemp)"
    # tee outlives Ctrl-C, so that pytest can say what it has found until then
    "$PYTHON" -m pytest -m "$marks" "$@" | tee -i -- "$log" || code=$?
    closing_lines+="$(tail -n 1 -- "$log")"$'\n'
    rm -f -- "$log"
    if [ $code = 5 ]; then return 0; fi # the arguments select no test of this stage
    any_ran=true
    return $code
}

setup_project dev
if $setup_only; then exit; fi
cd -- "$REPO"

stage lint "$PYTHON" -m ruff check
stage format "$PYTHON" -m ruff format --check
stage types "$PYTHON" -m mypy
if [ -t 1 ]; then export PY_COLORS=1; fi # pytest writes to a pipe
stage tests run_tests "($chosen) and not distributed" -n "$(count_workers)" --no-loadscope-reorder "$@"
if [ "$chosen" != "$fast" ]; then stage distributed run_tests "($chosen) and distributed" "$@"; fi
print_summary
$any_ran || exit 5 # pytest's own code for it
