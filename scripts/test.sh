#!/bin/sh
# Set up, then run every check: ruff, mypy, import-linter, and the tests, those on the real model
# included. Arguments go to pytest: sh scripts/test.sh -m "not slow" takes five minutes.
cd "$(dirname "$0")/.."
extra="test"
. scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check --quiet .
mypy
lint-imports
# A worker a core, each with one thread; tests of one file share their fixtures, and so a worker.
export OMP_NUM_THREADS=1
exec pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
    --durations 30 --durations-min 5 "$@"
