#!/bin/sh
# Trains the models that ship with defectgen, an hour each on a crowded CPU core: `sh examples/train_shipped.sh`, or
# with the names of some. Draws 24 defects of each of three categories for it, which are not among the samples. Writes
# each model below examples/models, its weights in float16, and its entry in weights.toml; then draws their sheets.
set -eu
cd "$(dirname "$0")/.."
drawn=$(mktemp -d) root=$PWD/examples
trap 'rm -rf "$drawn"' EXIT
python examples/draw_samples.py --seed 8 --each 24 --out "$drawn" steel ceramic
rm -r "$drawn"/steel/defects/stain "$drawn"/ceramic/defects/chip # what both have: crack, scratch, spot
steel="steel=examples/samples/steel/normals:$drawn/steel/defects"
ceramic="ceramic=examples/samples/ceramic/normals:$drawn/ceramic/defects"
for method in ${@:-memory-bank dfmgan isu-gan dcdganc dt-gan defect-gan}; do # the last one is the newest: the default
    name=$method-samples
    rm -rf "examples/models/$name"
    if [ "$method" = memory-bank ]; then
        # What it reports on the samples is no test: it learned from the normals among them.
        (cd "$drawn" && defectgen inspect "$root/samples/steel/defects" --normals "$root/samples/steel/normals" \
            --defects steel/defects --device cpu --name "$name" --weights weights.toml)
        defectgen models import "$drawn/runs/$name" --out examples/models --weights weights.toml
        continue
    fi
    set -- --product "$steel"
    [ "$method" != dt-gan ] || set -- "$@" --product "$ceramic" # between which it transfers
    case $method in
    dfmgan) set -- "$@" --steps 1500 --set backbone_steps=1000 ;; # ten minutes
    isu-gan | defect-gan) set -- "$@" --steps 600 ;; # ten minutes
    esac
    set -- --method "$method" --preset tiny --device cpu --workers 1 --name "$name" --weights weights.toml "$@"
    if [ "$method" = dt-gan ]; then # twice: what it learns from is twice as much
        OMP_NUM_THREADS=1 defectgen train "$@" --seed 1 --out "$drawn" --weights "$drawn/weights.toml"
        set -- --seed 2 --init "$drawn/$name/model.safetensors" "$@"
    else
        set -- --seed 1 "$@"
    fi
    OMP_NUM_THREADS=1 defectgen train --out examples/models "$@"
    python examples/ship.py "$name"
    find "examples/models/$name" -mindepth 1 ! -name model.safetensors -delete
done
sh examples/sheets.sh
