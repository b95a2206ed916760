#!/bin/sh
# The fast tests with the lowest versions that pyproject.toml allows, and with the newest.
# Arguments go to pytest: sh scripts/test_versions.sh tests/engine/test_prefix.py
# Needs about 6 GB in TMPDIR for each environment, the second after the first is gone.
set -eu
cd "$(dirname "$0")/.."
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT

if command -v uv >/dev/null; then
    uv="uv"
else
    "${PYTHON:-python3}" -m venv "$place/tools"
    "$place/tools/bin/pip" install --quiet --disable-pip-version-check uv
    uv="$place/tools/bin/uv"
fi

failed=""
for resolution in lowest-direct highest; do
    python="$place/$resolution/bin/python"
    "$uv" venv --quiet --python "${PYTHON:-python3}" "$place/$resolution"
    "$uv" pip install --quiet --python "$python" --resolution "$resolution" --editable ".[test]"
    echo "== $resolution: $("$uv" pip freeze --quiet --python "$python" | grep -E '^(torch|transformers)==' | xargs)"
    PYTHONPATH="$PWD" "$python" -m pytest -m "not slow" "$@" || failed="$failed $resolution"
    rm -rf "${place:?}/$resolution"
done
[ -z "$failed" ] || { echo "fails with versions:$failed" >&2; exit 1; }
