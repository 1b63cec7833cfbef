#!/bin/sh
# Installs defectgen into .venv and does the main job on the sample photographs, on whatever this machine has:
# trains a small model, synthesizes a small dataset, leaves a contact sheet to look at.
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
echo "Look at demo/dataset/sheet.jpg, and at demo/runs/demo/previews for how the training went."
