#!/usr/bin/env bash
# Checks the project: set-up, lint, format, types, tests. Stops at the first stage that fails, with its exit code.
#
#   bash scripts/test.sh                everything but the long tests
#   bash scripts/test.sh --full         also the tests marked slow (kills, rehearsals, documentation) and
#                                       distributed (two processes)
#   bash scripts/test.sh --setup-only   makes .venv, with the tools for the checks, and stops
#
# Further arguments go to pytest: bash scripts/test.sh -k rewards
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/setup.sh"
show_help_if_asked "${BASH_SOURCE[0]}" "$@"

selection=(-m "not slow and not distributed")
setup_only=false
while [ $# -gt 0 ]; do
    case "$1" in
        --full) selection=() ;;
        --setup-only) setup_only=true ;;
        *) break ;;
    esac
    shift
done

summary=""
print_summary() {
    printf '\n%s' "$summary"
}

stage() { # stage NAME COMMAND...
    local name="$1" began=$SECONDS code=0
    shift
    printf '\n== %s\n' "$name"
    "$@" || code=$?
    summary+="$(printf '%-10s %-18s %4d s' "$name" "$([ $code = 0 ] && echo passed || echo "failed (exit $code)")" \
        $((SECONDS - began)))"$'\n'
    [ $code = 0 ] || { print_summary && exit $code; }
}

setup_project dev
if $setup_only; then exit; fi
cd -- "$REPO"

stage lint "$PYTHON" -m ruff check
stage format "$PYTHON" -m ruff format --check
stage types "$PYTHON" -m mypy
# ${...+...}: an empty array counts as unset in the bash that macOS brings
stage tests "$PYTHON" -m pytest ${selection[@]+"${selection[@]}"} "$@"
print_summary
