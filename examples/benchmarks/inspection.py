"""Measures how well a model's verdicts and masks agree with labels, on images that it was not trained on.

    python examples/benchmarks/inspection.py NORMALS DEFECTS --model NAME [--weights FILE]

Image level: accuracy, F1 and AUROC of defective against flawless. Pixel level: F1 and IoU over all pixels of all
images. The masks of the defects are located as in `train`. With `--reference DIR` it compares with golden images.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from defectgen.folders import read_defects, read_normals
from defectgen.imaging.images import read_mask
from defectgen.inspection import inspector
from defectgen.inspection.reconstruction import NetworkRepair
from defectgen.models import registry


def auroc(positives: list[float], negatives: list[float]) -> float:
    """The probability that a defective image scores higher than a flawless one; ties count half."""
    p, n = np.array(positives)[:, None], np.array(negatives)[None]
    return float(((p > n) + 0.5 * (p == n)).mean())


def best_f1(positives: list[float], negatives: list[float]) -> float:
    """The F1 of the best threshold, which is unknown in practice."""
    p, n = np.array(positives), np.array(negatives)
    hits, alarms = ((each[None] > np.r_[p, n, -1][:, None]).sum(axis=1) for each in (p, n))
    return float((2 * hits / (hits + alarms + len(p))).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("normals", type=Path)
    parser.add_argument("defects", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--border", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    repair: inspector.Repair
    if arguments.reference:
        repair, threshold = inspector.golden(arguments.reference), inspector.UNCALIBRATED
    else:
        files = registry.find_registry(arguments.weights)
        network = NetworkRepair(registry.find(name=arguments.model, files=files).file, arguments.device)
        repair, threshold = network, network.threshold or inspector.UNCALIBRATED
    threshold = threshold if arguments.threshold is None else arguments.threshold

    normals, defects = read_normals(arguments.normals), read_defects(arguments.defects)
    labels = {sample.path: sample.mask for sample in (*normals.images, *defects.images)}
    scores: dict[bool, list[float]] = {False: [], True: []}
    right = hits = false_alarms = found = union = marked = detected = 0
    by_category: dict[str, list[bool]] = {}
    began = time.perf_counter()
    categories = {sample.path: sample.category for sample in defects.images}
    for finding in inspector.inspect(labels, repair, threshold, border=arguments.border, workers=arguments.workers):
        if isinstance(finding, inspector.Unreadable):
            print(f"{finding.path}: {finding.reason}")
            continue
        label = labels[finding.path]
        scores[label is not None].append(finding.score)
        right += finding.defective == (label is not None)
        hits += finding.defective and label is not None
        false_alarms += finding.defective and label is None
        truth = np.zeros(finding.mask.shape, np.bool_) if label is None else read_mask(label)
        found += int((finding.mask & truth).sum())
        union += int((finding.mask | truth).sum())
        marked += int(truth.sum())
        detected += int(finding.mask.sum())
        if label is not None:
            by_category.setdefault(categories[finding.path], []).append(finding.defective)
    seconds = time.perf_counter() - began
    count = len(scores[True]) + len(scores[False])
    missed = len(scores[True]) - hits
    area = auroc(scores[True], scores[False])
    print(f"{len(scores[False])} normals, {len(scores[True])} defects, threshold {threshold:.4f}")
    print(
        f"image level   accuracy {right / count:.3f}   F1 {2 * hits / (2 * hits + false_alarms + missed):.3f}   "
        f"AUROC {area:.3f}   best F1 over all thresholds {best_f1(scores[True], scores[False]):.3f}"
    )
    print(f"pixel level   F1 {2 * found / max(marked + detected, 1):.3f}   IoU {found / max(union, 1):.3f}")
    shares = ", ".join(f"{name} {sum(v)}/{len(v)}" for name, v in sorted(by_category.items()))
    print(f"found         {shares}; false alarms {false_alarms}/{len(scores[False])}")
    print(f"{count / seconds:.1f} images/s")


if __name__ == "__main__":
    main()
