"""Measures how many images a second `compose` makes, with encoding to disk: as it is, and with its parts left out.

    python examples/benchmarks/composing.py --size 256 --num 400

Prints medians over the repetitions, and ratios to cut-outs that are placed anywhere and not varied, from one run.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from defectgen import dataset
from defectgen.folders import read_defects, read_normals
from defectgen.imaging.images import encode_png
from defectgen.synthesis.pasted import ComposeRequest, Placement, compose
from defectgen.synthesis.stream import SampleSpec

PLAIN = Placement(place="anywhere", vary=0.0, scale=(0.8, 1.25), rotation=(-10.0, 10.0))
WAYS = {
    "anywhere, not varied": PLAIN,
    "anywhere": replace(PLAIN, vary=1.0),
    "where real ones lie, not varied": Placement(vary=0.0),
    "where real ones lie": Placement(),
}


def draw(root: Path, size: int) -> None:
    """Streaky noise images; ten of them with a bent line of some 60 pixels or a disc of 20, and its mask."""
    rng = np.random.default_rng(0)
    for name in ("normals", "defects/crack", "defects/hole", "masks/crack", "masks/hole"):
        (root / name).mkdir(parents=True)
    for i in range(40):
        surface = 120 + rng.normal(0, 10, (1, size)) + rng.normal(0, 6, (size, size))
        category = ("crack", "hole")[i % 2]
        pixels, mask = np.clip(surface, 0, 255).astype(np.uint8), np.zeros((size, size), np.uint8)
        if i >= 20:
            (root / f"normals/{i}.png").write_bytes(encode_png(pixels))
            continue
        x, y = (int(each) for each in rng.integers(40, size - 80, 2))
        if category == "crack":
            cv2.polylines(mask, [np.array([[x, y], [x + 8, y + 30], [x, y + 60]], np.int32)], False, 255, 3)
        else:
            cv2.circle(mask, (x, y), 10, 255, -1)
        pixels[mask > 0] = 60
        (root / f"defects/{category}/{i}.png").write_bytes(encode_png(pixels))
        (root / f"masks/{category}/{i}.png").write_bytes(encode_png(mask))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the images, in pixels")
    parser.add_argument("--num", type=int, default=400, help="samples for each way and repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root, options.size)
        defects, normals = read_defects(root / "defects"), read_normals(root / "normals")
        wanted = SampleSpec(("crack", "hole"), options.num, normals, workers=options.workers)
        for repetition in range(options.repetitions):
            for number, (name, placement) in enumerate(WAYS.items()):
                out = root / f"made-{repetition}-{number}"
                target = dataset.open_folder(
                    out, layout=dataset.Layout.PLAIN, command="", resume=False, overwrite=False
                )
                began = time.perf_counter()
                samples = compose(ComposeRequest(wanted, defects, "defects", placement))
                target.write(samples, metadata=samples.metadata, workers=options.workers)
                rates[name].append(options.num / (time.perf_counter() - began))
    first = statistics.median(rates["anywhere, not varied"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:32} {rate:7.1f} images/s, ratio {rate / first:.2f}")


if __name__ == "__main__":
    main()
