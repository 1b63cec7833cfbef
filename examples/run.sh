#!/bin/sh
# Installs defectgen into .venv and runs it on the sample images, on the GPU if there is one: trains a small model,
# then synthesizes a small dataset with a contact sheet.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/pip ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/pip install --quiet .
PATH="$PWD/.venv/bin:$PATH"

rm -rf demo && mkdir demo && cd demo
defectgen train --method dt-gan --preset tiny --time "${TIME:-4m}" --name demo --seed 1 --weights weights.toml \
    --product steel=../examples/samples/steel/normals:../examples/samples/steel/defects \
    --product ceramic=../examples/samples/ceramic/normals:../examples/samples/ceramic/defects
defectgen synthesize --model demo --weights weights.toml --num 24
echo "Look at demo/dataset/sheet.jpg, and at demo/runs/demo/previews for the progress of training."
