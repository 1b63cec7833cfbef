"""Measures what datasets of synthetic defects look like beside the real ones, with cut-outs as the yardstick.

    python examples/benchmarks/quality.py REAL CUT_OUTS [DATASET ...] [--one-mask DATASET ...] [--json FILE]

REAL holds `normals`, `defects` and `masks`; CUT_OUTS is a dataset of `defectgen compose` from the same defects. Prints
a row for each dataset:

- KID around the defects with EfficientNet-Lite0's features, for each category, and the mean of the ratios to CUT_OUTS;
- told: the share of defects whose category a network tells right that was fine-tuned on REAL;
- IoU: of the masks with what changed (median);
- variety: the mean perceptual distance of two of its defects, as a part of that of two real ones of the category;
- copies: near-copies of REAL's defects; redrawn: samples that needed more than one attempt.

A dataset of `--one-mask` has one normal and one `--region` mask, so that only the noise differs. Its mean perceptual
distance is printed as a part of that between two real defects of the category.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import number

from defectgen import evaluation, files
from defectgen.errors import UserError
from defectgen.evaluation import copies, downstream, fidelity
from defectgen.evaluation.data import Example, load_examples, read_real, read_synthetic, to_common_channels
from defectgen.evaluation.networks import Network
from defectgen.folders import NORMAL
from defectgen.seeding import numpy_rng

MOST = 40  # defects whose distances are measured
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def told(network: Network, made: list[Example]) -> float:
    """The share of defects whose category the network tells right; the mean over the categories."""
    right: dict[int, list[bool]] = {}
    for i, example in enumerate(made):
        x, _ = downstream.window(numpy_rng(i), example)
        label = int(network(torch.from_numpy(x[None]).to(DEVICE))[0].argmax())
        right.setdefault(example.label, []).append(label == example.label)
    return float(np.mean([np.mean(each) for each in right.values()]))


def redrawn(dataset: Path) -> float:
    """The share of the samples that needed more than one attempt."""
    rows = [json.loads(line) for line in (dataset / "manifest.jsonl").read_text().splitlines()]
    return float(np.mean([row["parameters"].get("attempt", 0) > 0 for row in rows if "parameters" in row]))


def distance(figures: fidelity.Figures, examples: list[Example]) -> float:
    """The mean perceptual distance of two windows around defects."""
    seen = fidelity.perceptual(figures.network, fidelity.upsampled(fidelity.windows_around(examples[:MOST])))
    return float(np.mean([np.linalg.norm(a - b) for a, b in combinations(seen, 2)]))


def cells(row: dict[str, Any]) -> list[str]:
    """The figures of a row, as they are printed."""
    plain = [number(row[key], 2) for key in ("ratio", "told", "iou", "variety")]
    kids = [number(kid, 1) for kid in row["kid"].values()]
    return [*kids, *plain, f"{row['copies']:.0%}", f"{row['redrawn']:.0%}"]


def mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+", metavar="DATASET", help="cut-outs first")
    parser.add_argument("--one-mask", type=Path, nargs="+", default=[])
    parser.add_argument("--one-category", action="store_true", help="count all defects as one, for models of isu-gan")
    parser.add_argument("--steps", type=int, default=150, help="of the network that tells categories")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args()

    united = evaluation.as_one_category if options.one_category else tuple
    images = united(read_real(options.real).images)
    categories = sorted({each.category for each in images} - {NORMAL})
    real = load_examples(images, categories)
    defects = [each for each in real if each.label and each.mask.any()]
    figures = fidelity.Figures(DEVICE, {}, seed=0)
    gallery = copies.Gallery(figures.network, [(each.x, each.mask) for each in defects])
    plan = downstream.Plan(options.steps, DEVICE)
    network = downstream.train(downstream.TrainingSet(real), 1 + len(categories), plan, seed=0)
    of_label = {label: [each for each in defects if each.label == label] for label in range(1, 1 + len(categories))}
    measures = {label: figures.of_category(mine, None) for label, mine in of_label.items()}

    names = " | ".join(f"KID {category}" for category in categories)
    print(f"| dataset | {names} | mean of the ratios | told | IoU | variety | copies | redrawn |")
    print("|---" * (7 + len(categories)) + "|")
    spread = {label: distance(figures, mine) for label, mine in of_label.items() if len(mine) > 1}
    rows: list[dict[str, Any]] = []
    for dataset in options.datasets:
        found = united(read_synthetic(dataset).images)
        made = [each for each in load_examples(found, categories, synthetic=True) if each.mask.any()]
        if not made:
            print(f"{dataset.name} has no defects", file=sys.stderr)
            continue
        (made,) = to_common_channels(made)
        made_of = {label: mine for label in of_label if len(mine := [e for e in made if e.label == label]) > 1}
        measured = {categories[label - 1]: measures[label](mine) for label, mine in made_of.items()}
        kid = {category: of["lite0_kid"] for category, of in measured.items()}
        base = rows[0]["kid"] if rows else kid
        spreads = [distance(figures, mine) / spread[label] for label, mine in made_of.items() if label in spread]
        agreement = evaluation.mask_agreement(found)
        row = {
            "dataset": dataset.name,
            "kid": {category: kid.get(category) for category in categories},
            "floor": {category: of.get("lite0_kid_floor") for category, of in measured.items()},
            "ratio": mean([kid[category] / base[category] for category in kid if base.get(category)]),
            "told": told(network, made),
            "iou": agreement["median_iou"] if agreement else None,
            "variety": mean(spreads),
            "copies": float(gallery.nearest((each.x, each.mask) for each in made).copies.mean()),
            "redrawn": redrawn(dataset),
        }
        rows.append(row)
        print(f"| {dataset.name} | {' | '.join(cells(row))} |", flush=True)
    if options.json:
        files.write(options.json, json.dumps(rows, indent=2) + "\n")
    for dataset in options.one_mask:
        made = load_examples(united(read_synthetic(dataset).images), categories, synthetic=True)
        part = distance(figures, made) / distance(figures, of_label[made[0].label])
        print(
            f"{dataset.name}: one mask, {len(made)} noises: {part:.2f} of the distance of two real defects", flush=True
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"quality.py: {error}")
