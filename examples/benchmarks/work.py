"""Counts the work of a mean training step of each method's preset, beside that of the code that its paper builds on.

    python examples/benchmarks/work.py

Work is what PyTorch's counter counts: twice the multiplications of convolutions and matrix products, forwards and
backwards. A mean step has the parts that not every step has, such as lazy penalties, in proportion.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throughput import noise_images
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from defectgen.device import resolve, torch_rng
from defectgen.folders import read_catalog
from defectgen.methods import info, names
from defectgen.methods.base import Batch, Method, MethodConfig
from defectgen.models.model import build
from defectgen.training.data import Feeder, make_task, training_data

Kind = tuple[bool, ...]


@dataclass(frozen=True)
class Reference:
    """The code that a paper builds on, and the published work of its step for as many images as a row of ours has."""

    name: str
    gflop: float


REFERENCES = {
    # 404 TFLOP for 1000 images
    "dfmgan": Reference("StyleGAN2-ADA, 256 px (stage 1)", 404.0),
    # 17.5 TFLOP for an iteration of 8 images
    "dt-gan": Reference("StarGAN v2, 128 px", 17_500 / 8),
    # 1.9 TFLOP for an iteration of 1 + 1 images
    "isu-gan": Reference("CycleGAN, ResNet-9, 256 px", 1_900.0),
    # 0.98 TFLOP for a mean iteration of 16 images; both images of a row, a normal and a defective one, are translated
    "defect-gan": Reference("StarGAN, 128 px, 2 images", 2 * 980 / 16),
}


class Work(TorchDispatchMode):
    """Sums PyTorch's formulas over the operations that have one, which return zeros at once: only their shapes count.

    `FlopCounterMode` computes everything, and fails at penalties of gradients.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flop = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        formula = flop_registry.get(operation._overloadpacket)
        if formula is None:
            return operation(*args, **(kwargs or {}))
        shapes = tree_map_only(torch.Tensor, lambda each: each.to("meta"), (args, kwargs or {}))
        result = operation(*shapes[0], **shapes[1])
        self.flop += formula(*args, **(kwargs or {}), out_val=result)
        device = next(each.device for each in args if isinstance(each, torch.Tensor))
        return tree_map_only(torch.Tensor, lambda each: torch.zeros_like(each, device=device), result)


def kinds(config: MethodConfig, stage: int) -> dict[Kind, tuple[float, int]]:
    """The kinds of steps of a stage: their share of it, and the last step of that kind."""
    first = getattr(config, "backbone_steps", 0)
    steps = range(first) if stage == 1 and first else range(first, config.steps)
    last = {config.extras(step, step / config.steps): step for step in steps}
    counts = Counter(config.extras(step, step / config.steps) for step in steps)
    return {kind: (counts[kind] / len(steps), last[kind]) for kind in last}


def measure(method: Method, batch: Batch, found: dict[Kind, tuple[float, int]], repeat: int) -> tuple[float, float]:
    """The work of a mean step in GFLOP, and its time in milliseconds: of each kind the median of `repeat` steps."""
    spent = work = 0.0
    for share, step in found.values():
        rng, progress = torch_rng(0, 0, step), step / method.config.steps
        times = []
        for _ in range(repeat):
            began = time.perf_counter()
            losses = method.training_step(batch, step, progress, rng)
            [float(value) for value in losses.values()]  # a GPU works on until someone waits for it
            times.append(time.perf_counter() - began)
        spent += share * 1000 * statistics.median(times) if times else 0.0
    for share, step in found.values():  # afterwards, since the zeros spoil the weights
        with Work() as counter:
            method.training_step(batch, step, step / method.config.steps, torch_rng(0, 0, step))
        work += share * counter.flop / 1e9
    return work, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=names(), help="repeatable [default: all]")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, help="[default: the preset's on a GPU, else at most 4]")
    parser.add_argument("--repeat", type=int, default=1, help="timed steps of each kind; 0 counts only")
    arguments = parser.parse_args()

    device = resolve(arguments.device)
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"preset {arguments.preset} on {on}, PyTorch {torch.__version__}\n")
    print("| method | batch | a step, GFLOP | for a row | ms for a row | its base, GFLOP | ratio |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        catalog = read_catalog([noise_images(Path(name), np.random.default_rng(0), 512)])
        for method in arguments.method or names():
            row = info(method)
            preset = row.configure(arguments.preset, {})
            size = arguments.batch_size or (preset.batch_size if device.type == "cuda" else min(4, preset.batch_size))
            config = preset.model_copy(update={"batch_size": size})
            windows = training_data(method, catalog, config)
            feeder = Feeder(windows, size, 0, device, 1)
            batch = feeder.batch(0)
            feeder.close()
            for stage, label in enumerate(row.stages, start=1):
                built = build(method, config, make_task(windows), device, 0)
                work, spent = measure(built, batch, kinds(config, stage), arguments.repeat)
                known = REFERENCES.get(method) if stage == 1 and arguments.preset == "paper" else None
                base = f"{known.name}: {known.gflop:.1f} | {work / size / known.gflop:.2f}" if known else "| "
                of = f"{method}, {label}" if len(row.stages) > 1 else method
                timed = f"{spent / size:.0f}" if arguments.repeat else ""
                print(f"| {of} | {size} | {work:.1f} | {work / size:.1f} | {timed} | {base} |", flush=True)


if __name__ == "__main__":
    main()
