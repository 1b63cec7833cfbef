"""Compares the SSIM and Otsu stage with scikit-image's, whole verdicts with anomalib's PatchCore, and involution.

    python examples/benchmarks/inspector_speed.py

Prints medians of alternating calls and their ratios. anomalib is left out where it is not installed; its network has
random weights, which take the same time. Memory is the peak that the forward and backward pass of an
operator allocates, in multiples of its input.
"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from skimage.metrics import structural_similarity
from timing import medians
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from defectgen.imaging.images import DecodedImage
from defectgen.imaging.ssim import limits_of, otsu, ssim_map
from defectgen.inspection.alignment import aligned
from defectgen.inspection.features import Lesson, Memory, learn
from defectgen.inspection.inspector import Criteria, find
from defectgen.inspection.scores import DIFFERENCE, SSIM
from defectgen.methods.isu_gan import Involution
from defectgen.nn.features import lite0


def step(module: nn.Module, x: Tensor) -> None:
    module(x).sum().backward()


def peak(module: nn.Module, x: Tensor) -> float:
    """Peak bytes allocated during forward and backward, from the profiler's record of each allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(module, x)
    now = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return float(most)


def verdicts(x: NDArray[np.uint8], y: NDArray[np.uint8], threads: int, repeat: int) -> None:
    """Prints how many images a second are judged from pixels to mask, several at a time."""
    image, network = DecodedImage(x), lite0()
    lesson = Lesson(network, image, np.zeros(x.shape, np.bool_), 2**14, 0)
    small = DecodedImage(np.ascontiguousarray(x[:64, :64]))
    marked = [Lesson(network, small, np.eye(64, dtype=np.bool_), 64, seed) for seed in range(3)]
    memory = {kind: Memory(network, learn([lesson, *marked], kind, 0), kind) for kind in ("memory", "classifier")}
    golden = {"ssim": SSIM, "difference": DIFFERENCE}
    ways: dict[str, Callable[[], object]] = {
        name: partial(find, Path("a"), image, y, Criteria(scorer.uncalibrated or 0.5, scorer), pictured=False)
        for name, scorer in golden.items()
    }
    ways["difference, aligned"] = lambda: find(
        Path("a"), image, aligned(image, y), Criteria(0.2, DIFFERENCE), pictured=False
    )
    ways |= {
        name: partial(find, Path("a"), image, None, Criteria(1.9, scorer), pictured=False)
        for name, scorer in memory.items()
    }
    if find_spec("anomalib"):
        patchcore: Any = import_module("anomalib.models.image.patchcore.torch_model")
        model = patchcore.PatchcoreModel(
            layers=["layer2", "layer3"], backbone="wide_resnet50_2", pre_trained=False
        ).eval()
        given = torch.from_numpy(x).float().div(255).expand(1, 3, -1, -1)
        model.memory_bank = torch.rand(2000, 1536)
        ways["anomalib's PatchCore"] = torch.inference_mode()(lambda: model(given))

    def several(way: Callable[[], object]) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for each in [pool.submit(way) for _ in range(threads)]:
                each.result()

    found = medians({name: partial(several, way) for name, way in ways.items()}, repeat)
    print(f"verdicts, {len(x)} x {len(x)} gray, {threads} images at a time")
    for name, value in found.items():
        print(f"  {name:22} {1000 * threads / value:6.2f} images/s   {found['ssim'] / value:6.3f} of ssim")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    size = arguments.size

    coarse = cv2.resize(rng.normal(0, 40, (9, 9)), (size, size), interpolation=cv2.INTER_CUBIC)
    x = np.clip(130 + coarse + rng.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)
    y = np.clip(x + rng.normal(0, 3, x.shape), 0, 255).astype(np.uint8)
    y[size // 4 : size // 3, size // 4 : size // 3] = 90
    threads = os.cpu_count() or 1

    def theirs() -> tuple[object, float]:
        _, full = structural_similarity(x, y, win_size=9, data_range=255, full=True)
        return full, float(threshold_otsu(full))

    def ours() -> tuple[object, float]:
        scores = ssim_map(x, y, threads=threads)
        return scores, otsu([scores], limits_of(scores))

    found = medians({"scikit-image": theirs, "defectgen": ours}, arguments.repeat)
    (full, level), (scores, own) = theirs(), ours()
    print(f"SSIM (window 9) and Otsu, {size} x {size} gray, {threads} threads")
    for name, value in found.items():
        print(
            f"  {name:16} {value:8.1f} ms   {1000 / value:6.1f} images/s   {found['scikit-image'] / value:6.1f} times"
        )
    print(
        f"  maps differ by {np.abs(np.asarray(full) - scores).max():.1e} at most, thresholds by {abs(level - own):.1e}"
    )

    verdicts(x, y, threads, arguments.repeat)

    channels, side = 128, 32
    given = torch.randn(1, channels, side, side, requires_grad=True)
    operators: dict[str, nn.Module] = {
        "convolution 3x3": nn.Conv2d(channels, channels, 3, padding=1),
        "involution 7x7": Involution(channels, 7),
        "involution 3x3": Involution(channels, 3),
    }
    found = medians({name: partial(step, module, given) for name, module in operators.items()}, 4 * arguments.repeat)
    print(f"forward and backward, {channels} channels, {side} x {side}")
    for name, module in operators.items():
        weights = sum(p.numel() for p in module.parameters())
        memory = peak(module, given) / given.detach().numel() / 4
        print(
            f"  {name:16} {found[name]:8.2f} ms   {found[name] / found['convolution 3x3']:6.2f} of the convolution   "
            f"{memory:6.1f} times the input   {weights} weights"
        )


if __name__ == "__main__":
    main()
