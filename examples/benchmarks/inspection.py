"""Measures `inspect` on images that it did not learn from, and on drawn circuit boards against golden images.

    python examples/benchmarks/inspection.py NORMALS DEFECTS [--masks DIR]
    python examples/benchmarks/inspection.py --boards 32

Of each folder, three fifths of the images, in the order of their names, are learned from and calibrated with; the rest
is judged: `alone` by flawless images only, then with the known defects.
Boards are drawn with ragged edges,
shifted, in other light and with noise; eight flawless ones calibrate.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import boards
import numpy as np
from results import ALL, LEARNED, place

from defectgen import InspectRequest, ProductFolders, inspect, read_catalog
from defectgen.folders import SourceImage
from defectgen.imaging.images import encode_png

EDGE = 9  # pixels along a board's edges in which defects do not count
NEAR = 3  # pixels that a found defect may lie beside a true one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("normals", type=Path, nargs="?")
    parser.add_argument("defects", type=Path, nargs="?")
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--boards", type=int, default=0, help="number of boards of each of three kinds")
    parser.add_argument("--share", type=float, help="of flawless boards that pass")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)  # where the models and their list go
        if arguments.boards:
            for kind in boards.KINDS:
                on_boards(kind, arguments.boards, arguments.share)
        if arguments.normals:
            folders = (arguments.normals, arguments.defects, arguments.masks)
            on_images(*(None if each is None else Path(start, each) for each in folders))


start = Path.cwd()


def on_images(normals: Path | None, defects: Path | None, masks: Path | None) -> None:
    assert normals is not None
    source = ProductFolders(product="product", normals=normals, defects=defects, masks=masks)
    images = read_catalog([source]).images
    by_kind: dict[str, list[SourceImage]] = {}
    for image in sorted(images, key=lambda each: each.path.name):
        by_kind.setdefault(image.category, []).append(image)
    for of_kind in by_kind.values():
        for i, image in enumerate(of_kind):
            place(image, Path("learned" if i % ALL < LEARNED else "judged"))
    learned = Path("learned")
    for name, known in (("alone", None), ("with-defects", learned / "defects")):
        judge(
            InspectRequest(
                images=Path("judged"), labels=True, normals=learned / "normals", defects=known, name=name,
                out=Path(f"report-{name}"), workers=2,
            )
        )  # fmt: skip


def judge(request: InspectRequest) -> None:
    began = time.perf_counter()
    job = inspect(request)
    ready = time.perf_counter()
    for _ in job:
        pass
    seconds = time.perf_counter() - ready
    assert job.figures is not None
    of, pixels = job.figures, job.figures["pixels"] or {}
    shares = ", ".join(f"{name} {each['found']}/{each['images']}" for name, each in of["categories"].items())
    print(f"{request.name}: score {of['score']}, threshold {of['threshold']}, learned in {ready - began:.0f} s")
    print(
        f"  images: AUROC {of['auroc']:.3f}, F1 {of['f1']:.3f} at the calibrated threshold, {of['best_f1']:.3f} at the "
        f"best; found {shares}; false alarms {of['false_alarms']}/{of['normals']}"
    )
    if pixels:
        print(f"  pixels: AUROC {pixels['auroc']:.3f}, AUPRO {pixels['aupro']:.3f}, F1 {pixels['f1']:.3f}")
    print(f"  {of['images'] / seconds:.1f} images/s")


def on_boards(kind: str, count: int, share: float | None) -> None:
    rng = np.random.default_rng(boards.KINDS.index(kind))
    truth: dict[str, list[tuple[int, int, int, int]]] = {}
    for folder in ("golden", "line", "good"):
        Path(kind, folder).mkdir(parents=True)
    for i in range(count):
        drawn, flawless, defective, boxes = boards.board(kind, rng)
        for folder, pixels in (("golden", drawn), ("good" if i < 8 else "line", flawless if i < 8 else defective)):
            Path(kind, folder, f"{i:03}.png").write_bytes(encode_png(pixels))
        truth[f"{i:03}.png"] = boxes
    request = InspectRequest(
        images=Path(kind, "line"),
        reference=Path(kind, "golden"),
        calibrate=Path(kind, "good"),
        out=Path(kind, "report"),
        share=share,
    )
    touched = true = false = 0
    job = inspect(request)
    began = time.perf_counter()
    names = [Path(each.row["image"]).name for each in job]
    seconds = time.perf_counter() - began
    for line in (request.out / "report.jsonl").read_text().splitlines():
        row = json.loads(line)
        found = [(x, y, x + width, y + height) for x, y, width, height in row["boxes"]]
        boxes = [
            (x - NEAR, y - NEAR, right + NEAR, bottom + NEAR) for x, y, right, bottom in truth[Path(row["image"]).name]
        ]
        inner = [box for box in boxes if box[2] > EDGE and box[3] > EDGE and max(box[:2]) < boards.SIDE - EDGE]
        true += len(inner)
        touched += sum(any(overlap(box, each) for each in found) for box in inner)
        false += sum(not any(overlap(box, each) for box in boxes) for each in found)
    print(
        f"boards, {kind}: {touched}/{true} boxes touched ({touched / true:.3f}), {false / len(names):.2f} false parts "
        f"a board, threshold {job.criteria.threshold:.4f}, {len(names) / seconds:.1f} images/s"
    )


def overlap(a: Sequence[int], b: Sequence[int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


if __name__ == "__main__":
    main()
