"""Measures how well a model's verdicts and masks agree with labels, on images that it was not trained on.

    python examples/benchmarks/inspection.py NORMALS DEFECTS --model NAME [--weights FILE]

Image level: accuracy, F1 and AUROC of defective against flawless. Pixel level: F1 and IoU over all pixels of all
images. The masks of the defects are located as in `train`. With `--reference DIR` it compares with golden images.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from defectgen.folders import NORMAL, read_defects, read_normals
from defectgen.imaging.mask_files import read_masks
from defectgen.inspection import inspector
from defectgen.inspection.reconstruction import NetworkRepair
from defectgen.inspection.scoring import Judged, image_figures
from defectgen.models import registry


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

    images = [*read_normals(arguments.normals).images, *read_defects(arguments.defects).images]
    labels = {each.path: each for each in images}
    judged: list[Judged] = []
    found = union = marked = detected = 0
    began = time.perf_counter()
    for finding in inspector.inspect(labels, repair, threshold, border=arguments.border, workers=arguments.workers):
        if isinstance(finding, inspector.Unreadable):
            print(f"{finding.path}: {finding.reason}")
            continue
        label = labels[finding.path]
        categories = () if label.category == NORMAL else (label.category,)
        judged.append(Judged(categories, finding.score, finding.defective))
        truth = np.zeros(finding.mask.shape, np.bool_) if label.mask is None else read_masks(label.mask)
        found += int((finding.mask & truth).sum())
        union += int((finding.mask | truth).sum())
        marked += int(truth.sum())
        detected += int(finding.mask.sum())
    seconds = time.perf_counter() - began
    of = image_figures(judged)
    print(f"{of['normals']} normals, {of['defects']} defects, threshold {threshold:.4f}")
    print(
        f"image level   accuracy {of['accuracy']:.3f}   F1 {of['f1']:.3f}   AUROC {of['auroc']:.3f}   "
        f"best F1 over all thresholds {of['best_f1']:.3f}"
    )
    print(f"pixel level   F1 {2 * found / max(marked + detected, 1):.3f}   IoU {found / max(union, 1):.3f}")
    shares = ", ".join(f"{name} {each['found']}/{each['images']}" for name, each in of["categories"].items())
    print(f"found         {shares}; false alarms {of['false_alarms']}/{of['normals']}")
    print(f"{len(judged) / seconds:.1f} images/s")


if __name__ == "__main__":
    main()
