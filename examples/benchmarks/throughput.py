"""Measures training and synthesis (with encoding to disk) of a preset on a device in images/s, on noise images.

    python examples/benchmarks/throughput.py --preset tiny --device cpu

Prints medians over the repetitions, and the ratio of synthesis to the slower of generator and PNG encoder alone.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from defectgen import dataset, files
from defectgen.folders import ProductFolders, read_catalog
from defectgen.imaging.images import encode_png, read_image
from defectgen.methods import info, names
from defectgen.methods.base import GenerateBatch
from defectgen.models.model import load
from defectgen.models.registry import Entry
from defectgen.synthesis.generated import SynthesisRequest, synthesize
from defectgen.synthesis.stream import SampleSpec
from defectgen.training.run import TrainSpec
from defectgen.training.trainer import train


def noise_images(folder: Path, rng: np.random.Generator, side: int) -> ProductFolders:
    """Noise with bright squares as defects; the timings do not depend on the content."""
    for i in range(16):
        pixels = rng.integers(90, 110, (side, side, 3), np.uint8)
        files.write(folder / f"normals/{i}.png", encode_png(pixels))
        mask = np.zeros((side, side), np.uint8)
        mask[40:60, 40:60] = 255
        pixels[mask > 0] = 220
        files.write(folder / f"defects/square/{i}.png", encode_png(pixels))
        files.write(folder / f"masks/square/{i}.png", encode_png(mask))
    return ProductFolders(product="noise", normals=folder / "normals", defects=folder / "defects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="dt-gan", choices=names())
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--num", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--photograph", type=int, default=512, help="side of the images, in pixels")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()

    method = arguments.method
    config = info(method).configure(arguments.preset, {"steps": str(arguments.steps)})
    training, synthesis, network, encoder = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = noise_images(folder, np.random.default_rng(0), arguments.photograph)
        catalog = read_catalog([source])
        normals = catalog.model_copy(update={"images": tuple(s for s in catalog.images if s.mask is None)})
        for i in range(arguments.repeat):
            moments: list[float] = []
            trained = train(
                TrainSpec(method, "bench", folder / f"run{i}", catalog, (source,), config, device=arguments.device),
                lambda _: moments.append(time.perf_counter()),  # noqa: B023 (called within this iteration)
            )
            steps = np.diff(moments)[5:]  # the first steps are warm-up
            training.append(config.batch_size / statistics.median(steps))

            entry = Entry(
                name="bench", method=method, categories=("square",), products=("noise",),
                image_size=config.image_size, channels=3, file=trained.model, sha256=files.sha256(trained.model),
                created=datetime.now(timezone.utc), trained_on={"noise": source.normals},
            )  # fmt: skip
            request = SynthesisRequest(
                entry,
                SampleSpec(("square",), arguments.num, normals, workers=arguments.workers),
                device=arguments.device,
            )
            out = dataset.open_folder(
                folder / f"out{i}", layout=dataset.Layout.PLAIN, command="benchmark", resume=False, overwrite=False
            )
            began = time.perf_counter()
            samples = synthesize(request)
            summary = out.write(samples, workers=arguments.workers)
            made = summary.written + samples.redrawn
            synthesis.append(made / (time.perf_counter() - began))

            device = torch.device("cpu" if arguments.device == "auto" else arguments.device)
            model = load(trained.model, device).method
            size = 8 if device.type == "cuda" else 1  # as `synthesize` does
            x = torch.zeros(size, 3, config.image_size, config.image_size)
            began = time.perf_counter()
            for _ in range(32 // size):
                model.generate(GenerateBatch(x, torch.ones(size, dtype=torch.long), [torch.Generator()] * size))
            network.append(32 / (time.perf_counter() - began))

            files_of = [*(folder / f"out{i}").rglob("images/**/*.png"), *(folder / f"out{i}").rglob("masks/**/*.png")]
            pictures = [read_image(path).pixels for path in files_of]
            began = time.perf_counter()
            with ThreadPoolExecutor(max(1, arguments.workers)) as pool:
                list(pool.map(encode_png, pictures))
            encoder.append(summary.written / (time.perf_counter() - began))

    print(f"{arguments.method} {arguments.preset} on {arguments.device}, medians of {arguments.repeat}")
    least = min(statistics.median(network), statistics.median(encoder))
    rows = {"training": training, "generator alone": network, "encoder alone": encoder, "synthesis": synthesis}
    for label, values in rows.items():
        print(f"{label:16} {statistics.median(values):8.1f} images/s")
    print(f"synthesis is {statistics.median(synthesis) / least:.2f} of the slower of the two")


if __name__ == "__main__":
    main()
