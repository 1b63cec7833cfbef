#!/bin/sh
# Installs defectgen into .venv and shows what it does, on the sample images and on the GPU if there is one: cut-outs and
# the defects of a model that ships within a minute, then a short training that starts from that model, and whether a
# dataset helps. Writes demo/index.html.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/pip ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/pip install --quiet .
PATH="$PWD/.venv/bin:$PATH"

rm -rf demo && mkdir demo && cd demo
# Two fifths of the images are held out, for the test at the end.
samples=../examples/samples/steel
for file in "$samples"/normals/* "$samples"/defects/*/* "$samples"/masks/*/*; do
    name=${file#"$samples"/}
    case ${file##*/} in *[012567].*) part=photos ;; *) part=held-out ;; esac
    mkdir -p "$part/${name%/*}"
    cp "$file" "$part/$name"
done
defectgen compose photos/defects photos/normals --num 24 --seed 1 --out composed
# Code 3: a few samples failed.
defectgen synthesize --model defect-gan-samples --normals held-out/normals --num 24 --seed 1 --out shipped || [ $? = 3 ]
echo "Look at demo/composed/sheet.jpg and demo/shipped/sheet.jpg. What follows takes some minutes more."
defectgen train photos/normals photos/defects --init defect-gan-samples --preset tiny --time "${TIME:-90s}" --name demo \
    --seed 1 --weights weights.toml
defectgen synthesize --model demo --weights weights.toml --num 24 --seed 1 --out trained || [ $? = 3 ]
defectgen evaluate photos composed --test held-out --quick --seeds 1 --out report
python ../examples/demo_page.py
echo "Look at demo/index.html."
