#!/bin/sh
# Trains the model that ships with defectgen on the sample images, in about 15 minutes on one CPU core. Writes
# model.safetensors below examples/models, its weights in float16, and adds its entry to weights.toml.
set -eu
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 defectgen train --method dt-gan --preset tiny --steps 2000 --seed 1 --device cpu --workers 1 \
    --name dt-gan-samples --out examples/models \
    --product steel=examples/samples/steel/normals:examples/samples/steel/defects \
    --product ceramic=examples/samples/ceramic/normals:examples/samples/ceramic/defects "$@"
python examples/ship.py dt-gan-samples
