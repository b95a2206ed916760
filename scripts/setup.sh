# Sourced from the root of the checkout by quickstart.sh and test.sh: makes .venv with the tested
# versions, once. $extra names the optional dependencies wanted, if any.
set -eu

stamp=".venv/.set-up${extra:+-$extra}"
wanted="$(cat pyproject.toml constraints.txt | cksum)"

if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "setting up .venv (a few minutes, once)" >&2
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    # torch first and by its exact version, so that nothing else decides which build comes.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        "$(grep '^torch==' constraints.txt)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".${extra:+[$extra]}"
    echo "$wanted" > "$stamp"
fi
