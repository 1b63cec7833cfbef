"""Measures what datasets of synthetic defects look like beside the real ones, with cut-outs as the yardstick.

    python examples/benchmarks/quality.py REAL CUT_OUTS DATASET [DATASET ...] [--one-mask DATASET ...]

REAL holds `normals`, `defects` and `masks`; CUT_OUTS is a dataset of `defectgen compose` from the same defects. Prints
a row for each dataset:

- KID around the defects with EfficientNet-Lite0's features, for each category, and the mean of the ratios to CUT_OUTS;
- told: the share of defects whose category a network tells right that was fine-tuned on REAL;
- IoU: of the masks with what changed (median);
- copies: near-copies of REAL's defects; redrawn: samples that needed more than one attempt.

A dataset of `--one-mask` has one normal and one `--region` mask, so that only the noise differs. Its mean perceptual
distance is printed as a part of that between two real defects of the category.
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from defectgen import evaluation
from defectgen.evaluation import copies, downstream, fidelity
from defectgen.evaluation.data import Example, load_examples, read_real, read_synthetic, to_common_channels
from defectgen.evaluation.networks import Network
from defectgen.folders import NORMAL
from defectgen.seeding import numpy_rng

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
    seen = fidelity.perceptual(figures.network, fidelity.upsampled(fidelity.windows_around(examples)))
    return float(np.mean([np.linalg.norm(a - b) for a, b in combinations(seen, 2)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    parser.add_argument("--one-mask", type=Path, nargs="+", default=[])
    parser.add_argument("--one-category", action="store_true", help="count all defects as one, for models of isu-gan")
    parser.add_argument("--steps", type=int, default=150, help="of the network that tells categories")
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
    print(f"| dataset | {names} | mean of the ratios | told | IoU | copies | redrawn |")
    print("|---" * (6 + len(categories)) + "|")
    yardstick: list[float] | None = None
    for dataset in options.datasets:
        found = united(read_synthetic(dataset).images)
        (made,) = to_common_channels([e for e in load_examples(found, categories, synthetic=True) if e.mask.any()])
        kids = [measures[label]([e for e in made if e.label == label])["lite0_kid"] for label in of_label]
        yardstick = yardstick or kids
        ratio = float(np.mean(np.array(kids) / yardstick))
        agreement = evaluation.mask_agreement(found)
        iou = f"{agreement['median_iou']:.2f}" if agreement else "-"
        near = gallery.nearest((each.x, each.mask) for each in made).copies.mean()
        cells = [*(f"{kid:.1f}" for kid in kids), f"{ratio:.2f}", f"{told(network, made):.2f}", iou]
        print(f"| {dataset.name} | {' | '.join(cells)} | {near:.0%} | {redrawn(dataset):.0%} |", flush=True)
    for dataset in options.one_mask:
        made = load_examples(united(read_synthetic(dataset).images), categories, synthetic=True)
        part = distance(figures, made) / distance(figures, of_label[made[0].label])
        print(
            f"{dataset.name}: one mask, {len(made)} noises: {part:.2f} of the distance of two real defects", flush=True
        )


if __name__ == "__main__":
    main()
