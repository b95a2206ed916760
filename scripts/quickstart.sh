#!/bin/sh
# Set up, then calibrate the embedded model for joy; the config and the report go to joy/.
cd "$(dirname "$0")/.."
extra=""
. scripts/setup.sh
exec .venv/bin/calibrate --model smollm2 --concept joy --out joy "$@"
