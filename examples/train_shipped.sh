#!/bin/sh
# Trains the models that ship with defectgen, in some two hours on one quiet CPU core: `sh examples/train_shipped.sh`, or
# with the names of methods for these alone. Draws 24 defects of each of three categories for it, which are not among
# the samples. Writes each model below examples/models, its weights in float16, and its entry in weights.toml.
set -eu
cd "$(dirname "$0")/.."
drawn=$(mktemp -d)
trap 'rm -rf "$drawn"' EXIT
python examples/draw_samples.py --seed 8 --each 24 --out "$drawn" steel ceramic
rm -r "$drawn"/steel/defects/stain "$drawn"/ceramic/defects/chip # what both have: crack, scratch, spot
steel="steel=examples/samples/steel/normals:$drawn/steel/defects"
ceramic="ceramic=examples/samples/ceramic/normals:$drawn/ceramic/defects"
for method in ${@:-dt-gan defect-gan isu-gan dcdganc dfmgan}; do
    name=$method-samples
    rm -rf "examples/models/$name"
    set -- --product "$steel"
    [ "$method" != dt-gan ] || set -- "$@" --product "$ceramic" # between which it transfers
    OMP_NUM_THREADS=1 defectgen train --method "$method" --preset tiny --seed 1 --device cpu --workers 1 \
        --name "$name" --out examples/models --weights weights.toml "$@"
    python examples/ship.py "$name"
done
