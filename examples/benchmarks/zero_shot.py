"""Tests whether a network trained on synthetic defects alone finds real ones, as in DCDGANc, section 3.6.

    python examples/benchmarks/zero_shot.py REAL NORMALS DATASET [DATASET ...]

Fine-tunes a network on each dataset (of `defectgen transfer`, `synthesize` or `compose`) with the normals of NORMALS,
and tests it on the real images of REAL (`defects`, `masks` and `normals`). The baseline is the same network trained on
flat blobs of random shape and brightness on NORMALS. Prints the mean and standard deviation of each score.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from defectgen.evaluation import downstream
from defectgen.evaluation.data import (
    Example,
    LabeledImage,
    load_examples,
    read_real,
    read_synthetic,
    to_common_channels,
)
from defectgen.evaluation.downstream import Plan, TrainingSet
from defectgen.folders import NORMAL, read_normals


def flat(normals: list[Example], count: int, seed: int = 0) -> list[Example]:
    """Blobs of uniform brightness on normals."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        x = normals[int(rng.integers(len(normals)))].x.copy()
        noise = cv2.GaussianBlur(rng.normal(size=x.shape[1:]), (0, 0), rng.uniform(3, 10))
        height, width = noise.shape
        y, left = rng.integers(0, max(height - 64, 1)), rng.integers(0, max(width - 64, 1))
        mask = np.zeros(noise.shape, np.bool_)
        part = noise[y : y + 64, left : left + 64]
        mask[y : y + 64, left : left + 64] = part > np.quantile(part, rng.uniform(0.7, 0.97))
        x[:, mask] = np.clip(x[:, mask].mean() + rng.choice([-1, 1]) * rng.uniform(0.15, 0.6), -1, 1)
        made.append(Example.of(x, mask, 1, synthetic=True))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("normals", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--category", help="of the real defects [default: all]")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tested", type=int, default=60, help="normals to test on, at most")
    options = parser.parse_args()
    plan = Plan(options.steps, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    real = read_real(options.real).images
    defects = [each for each in real if each.category != NORMAL and options.category in (None, each.category)]
    tested = defects + [each for each in real if each.category == NORMAL][: options.tested]
    normals = load_examples([LabeledImage(each.path, NORMAL) for each in read_normals(options.normals).images], [])
    training_sets = {"flat blobs": flat(normals, 300)}
    for folder in options.datasets:
        images = read_synthetic(folder).images
        categories = sorted({each.category for each in images})
        training_sets[str(folder)] = load_examples(images, categories, synthetic=True)
    test = load_examples(tested, sorted({each.category for each in defects}))
    print(f"{len(defects)} defects and {len(tested) - len(defects)} normals; {plan.steps} steps, {options.seeds} seeds")
    for name, examples in training_sets.items():
        made, good, test_set = to_common_channels(examples, normals, test)
        scores: dict[str, list[float]] = {}
        for seed in range(options.seeds):
            classes = 1 + max(each.label for each in made)
            network = downstream.train(TrainingSet(good, made, 1.0), classes, plan, seed)
            found = downstream.test(network, test_set, [], plan.device)
            for key in ("auroc", "ap", "f1_pixels", "iou"):
                scores.setdefault(key, []).append(found[key])
        figures = downstream.summary(scores)
        print(
            f"{name:24}", *(f"{key} {of['mean']:.3f} ± {of['spread']:.3f}" for key, of in figures.items()), flush=True
        )


if __name__ == "__main__":
    main()
