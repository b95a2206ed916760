#!/bin/sh
# Set up, then run every check: ruff, mypy, import-linter, and the tests, those on the real model
# included. Arguments go to pytest: sh scripts/test.sh -m "not slow" leaves the real model out.
cd "$(dirname "$0")/.."
extra="test"
. scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"
ruff check .
ruff format --check --quiet .
mypy
lint-imports
exec pytest "$@"
