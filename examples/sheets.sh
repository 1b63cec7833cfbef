#!/bin/sh
# Draws what the models that ship make: a sheet of each, and sheet.jpg with a row of windows of each. A minute or two.
set -eu
cd "$(dirname "$0")/.."
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
steel=examples/samples/steel
for part in defects masks; do # without the category that the models do not know
    for category in crack scratch spot; do
        mkdir -p "$made/drawn/$part"
        cp -r "$steel/$part/$category" "$made/drawn/$part/"
    done
done
defectgen compose "$made/drawn/defects" "$steel/normals" -n 24 --seed 3 --out "$made/compose"
rows="drawn=$made/drawn/defects compose=$made/compose"
mkdir -p examples/sheets
seed=3 # another one for each, or methods that paint masks would paint the same ones
for folder in examples/models/*gan*-samples; do
    name=$(basename "$folder") method=$(basename "$folder" -samples)
    seed=$((seed + 1))
    # Code 3: a few samples failed.
    defectgen synthesize -n 24 --model "$name" --normals "$steel/normals" --weights weights.toml --seed "$seed" \
        --out "$made/$method" || [ $? = 3 ]
    cp "$made/$method/sheet.jpg" "examples/sheets/$method.jpg"
    rows="$rows $method=$made/$method"
done
# shellcheck disable=SC2086 # a list of words without spaces
python examples/overview.py rows examples/sheet.jpg $rows
