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
# glibc keeps the memory that tensors free, as it does in a training: a tenth less time.
export MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=33554432
OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist worksteal "$@"
