#!/bin/sh
# Ten minutes on a GPU: trains every method's preset `compact` for 90 seconds, makes 60 samples of each model, measures
# them as quality.py does, and prints one table for README.md. A method that fails has a row that says so.
#
#   sh examples/benchmarks/gpu.sh [REAL [FOLDER]]
#
# REAL holds `normals`, `defects` and `masks` (default: the sample images of steel). FOLDER keeps runs, datasets and what
# the commands say (default: a temporary one, removed at the end). What else to run on a GPU, some minutes each:
#
#   pytest -m gpu; python examples/benchmarks/work.py; python examples/benchmarks/costs.py --preset compact --device cuda
#
# Without a GPU, to try the script: PRESET=tiny EACH=5s NUM=4 sh examples/benchmarks/gpu.sh
set -u
here=$(cd "$(dirname "$0")" && pwd)
real=${1:-$here/../samples/steel}
folder=${2:-}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder/datasets" || exit 2
preset=${PRESET:-compact} each=${EACH:-90s} num=${NUM:-60}
log=$folder/log.txt
methods=$(python -c "from defectgen.methods import names; print(*names())") || exit 2

defectgen() { python -m defectgen "$@" --weights "$folder/weights.toml" --seed 1 --json --quiet 2>>"$log"; }
python -m defectgen compose "$real/defects" "$real/normals" -n "$num" --place anywhere --vary 0 --rotation -10:10 \
    --seed 1 --out "$folder/datasets/cut-outs" --overwrite --quiet >>"$log" 2>&1 || exit 2

for method in $methods; do
    nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader,nounits -l 1 >"$folder/$method.smi" 2>/dev/null &
    watching=$!
    defectgen train --method "$method" --preset "$preset" --time "$each" --name "$method" --out "$folder/runs" \
        --overwrite "$real/normals" "$real/defects" >"$folder/$method.train"
    kill "$watching" 2>/dev/null
    began=$(date +%s)
    defectgen synthesize --model "$method" -n "$num" --normals "$real/normals" --overwrite \
        --out "$folder/datasets/$method" >"$folder/$method.made"
    echo $(($(date +%s) - began)) >"$folder/$method.seconds"
done

# ISU-GAN makes defects of one category.
several='' one=''
for method in $methods; do
    [ -d "$folder/datasets/$method/images" ] || continue # a model may paint nothing visible
    if [ -d "$folder/datasets/$method/images/defect" ]; then one="$one $folder/datasets/$method"
    else several="$several $folder/datasets/$method"; fi
done
measure() { # FILE ARGUMENT...
    file=$1
    shift
    python "$here/quality.py" "$real" "$folder/datasets/cut-outs" "$@" --json "$folder/$file" >>"$log" 2>&1
}
# shellcheck disable=SC2086 (folders of methods' names)
[ -z "$several" ] || measure several.json $several
# shellcheck disable=SC2086
[ -z "$one" ] || measure one.json $one --one-category

python - "$here" "$folder" "$preset" "$each" "$num" $methods <<'END'
import json
import sys
from pathlib import Path

import torch

here, folder, preset, each, num, *methods = sys.argv[1:]
sys.path.insert(0, here)
from results import taken  # noqa: E402

folder = Path(folder)
LOOKS = {"kid": ".1f", "told": ".2f", "iou": ".2f", "variety": ".2f", "copies": ".0%"}


def number(value, form):
    return "-" if value is None else format(value, form)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last(path):
    return (rows_of(path) or [{}])[-1]


seen = {}
for file in ("one.json", "several.json"):
    if (folder / file).exists():
        for row in json.loads((folder / file).read_text()):
            kids = [kid for kid in row["kid"].values() if kid is not None]
            seen[row["dataset"]] = row | {"kid": sum(kids) / len(kids) if kids else None}
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"{device}, PyTorch {torch.__version__}, preset {preset}, {each} of training each\n")
print(
    f"| method | steps | ms a step | images/s | GPU: MiB | busy | {num} samples, s | regenerated "
    "| KID | told | IoU | variety | copies |"
)
print("|---" * 13 + "|")
looks = [number(seen.get("cut-outs", {}).get(key), form) for key, form in LOOKS.items()]
print("| cut-outs |" + " |" * 7 + f" {' | '.join(looks)} |")
for method in methods:
    made = last(folder / f"{method}.made")
    if "written" not in made:
        print(f"| {method} | failed, see log.txt |" + " |" * 11)
        continue
    config = json.loads((folder / "runs" / method / "config.json").read_text())["config"]
    smi = [[float(cell) for cell in line.split(",")] for line in (folder / f"{method}.smi").read_text().splitlines()]
    memory, busy = (f"{max(row[0] for row in smi):.0f}", f"{sum(row[1] for row in smi) / len(smi):.0f}%") if smi else "--"
    steps, seconds, _ = taken(folder / "runs" / method)
    tried = made["written"] + made["redrawn"]
    cells = [
        steps, f"{1000 * seconds:.0f}", f"{config['batch_size'] / seconds:.0f}" if seconds else "-", memory, busy,
        (folder / f"{method}.seconds").read_text().strip(), f"{made['redrawn'] / max(tried, 1):.0%}",
        *(number(seen.get(method, {}).get(key), form) for key, form in LOOKS.items()),
    ]
    print(f"| {method} | {' | '.join(map(str, cells))} |")
END
