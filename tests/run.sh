#!/bin/sh
# Installs defectgen with its development tools into .venv, then runs every check: lint, format, types, tests.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/pip ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/pip install --quiet --editable '.[dev]'
PATH="$PWD/.venv/bin:$PATH"

ruff check
ruff format --check
mypy
OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist worksteal "$@"
