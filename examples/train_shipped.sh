#!/bin/sh
# Trains the model that ships with defectgen on the sample images, in about 15 minutes on one quiet CPU core. Writes
# model.safetensors below examples/models, its weights in float16, and adds its entry to weights.toml.
set -eu
cd "$(dirname "$0")/.."
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
for product in steel ceramic; do # of their defects, the categories that both have
    for category in crack scratch spot; do
        mkdir -p "$part/$product/defects" "$part/$product/masks"
        ln -s "$PWD/examples/samples/$product/defects/$category" "$part/$product/defects/$category"
        ln -s "$PWD/examples/samples/$product/masks/$category" "$part/$product/masks/$category"
    done
done
rm -rf examples/models/dt-gan-samples
OMP_NUM_THREADS=1 defectgen train --method dt-gan --preset tiny --steps 2000 --seed 1 --device cpu --workers 1 \
    --name dt-gan-samples --out examples/models --weights weights.toml \
    --product "steel=examples/samples/steel/normals:$part/steel/defects" \
    --product "ceramic=examples/samples/ceramic/normals:$part/ceramic/defects" "$@"
python examples/ship.py dt-gan-samples
