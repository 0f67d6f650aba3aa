#!/bin/sh
# The project's checks, as they run in CI:  sh test.sh [pytest arguments]
set -eu
cd "$(dirname "$0")"
. utils/shell.sh
environment requirements.txt requirements-optional.txt requirements-dev.txt

export HF_HUB_OFFLINE=1
run "$PYTHON" -m ruff check .
run "$PYTHON" -m ruff format --check .
run "$PYTHON" -m mypy .
OMP_NUM_THREADS=1 run "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
