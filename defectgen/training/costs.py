"""What a training run will cost in time, memory and disk space, for `--dry-run`.

Some steps of each kind run, a checkpoint is packed and a preview is made, as in the run itself. So memory is measured,
and times are multiplied by how often each of these will happen.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from defectgen import ranks
from defectgen.device import torch_rng
from defectgen.imaging.images import encode_jpeg
from defectgen.methods.base import MethodConfig, Staged
from defectgen.training.data import Feeder, TrainingWindows
from defectgen.training.run import Run, TrainSpec, line
from defectgen.training.trainer import (
    CHECKPOINT_SECONDS,
    PREVIEW_SECONDS,
    Setup,
    is_power_of_two,
    prepare,
    previewed_early,
    too_large,
)
from defectgen.training.view import LOG_EVERY, POINTS
from defectgen.training.view import NAME as VIEW

if sys.platform != "win32":
    import resource

Kind = tuple[bool, ...]
"""What `MethodConfig.extras` returns."""

_WARMUP_SECONDS = 5.0
_MEASURED_SECONDS = 5.0
_MEASURED_ROUNDS = 10


def kinds_of_steps(config: MethodConfig, start: int = 0) -> dict[Kind, tuple[int, int]]:
    """How often each kind of step comes from the step `start` on, and the last step of that kind."""
    kinds = [config.extras(step, step / config.steps) for step in range(start, config.steps)]
    last = {kind: step for step, kind in enumerate(kinds, start=start)}
    return {kind: (count, last[kind]) for kind, count in Counter(kinds).items()}


def estimate(request: TrainSpec) -> dict[str, Any]:
    """The counts, time, memory and disk space of a run, for `--dry-run`. Writes nothing that remains.

    `estimated_memory_bytes` is the peak of tensors on a GPU, else the resident memory of the process, or None if the
    system does not say. `estimated_disk_bytes` is what the run folder holds in the end; replacing the checkpoint takes
    its size once more.
    """
    config, setup = request.config, prepare(request)
    start = 0
    if isinstance(setup.method, Staged) and setup.backbone is not None:
        setup.method.take_backbone(setup.backbone)
        start = setup.method.backbone_steps
    kinds = kinds_of_steps(config, start)
    feeder = Feeder(setup.windows, config.batch_size, request.seed, setup.device, request.workers)
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name), setup.method, setup.average, setup.identity, setup.inputs)
        try:
            examples = feeder.examples()
            sheet = setup.windows.sheet() if isinstance(setup.windows, TrainingWindows) else None
            seconds, rows = _measure(request, setup, feeder, kinds)
            (checkpoint, others), of_checkpoint = _timed(lambda: run.sizes(config.steps))
            sheets, of_preview = _timed(lambda: run.preview(examples, config.steps, request.seed))
        except torch.OutOfMemoryError as error:
            raise too_large(config, setup.device) from error
        finally:
            feeder.close()
        preview = sum(path.stat().st_size for path in Path(name).rglob("*.jpg"))
        view = run.view(request.name, 0, config.steps)
        for i in range(min(config.steps // LOG_EVERY, POINTS)):
            view.log({**rows[list(kinds)[i % len(kinds)]], "step": i * LOG_EVERY})
        view.preview(*sheets)
        view.end("done")
        page = (Path(name) / VIEW).stat().st_size

    total = sum(count * seconds[kind] for kind, (count, _) in kinds.items())
    done = min(1.0, request.seconds / total) if request.seconds is not None and total else 1.0
    steps = range(start + 1, start + 1 + round(done * (config.steps - start)))
    checkpoints = sum(map(is_power_of_two, steps)) + done * total / CHECKPOINT_SECONDS
    previews = sum(map(previewed_early, steps)) + done * total / PREVIEW_SECONDS + 1
    total += checkpoints * of_checkpoint + previews * of_preview
    metrics = done * sum(count * len(line(rows[kind])) / LOG_EVERY for kind, (count, _) in kinds.items())
    twins = 0 if sheet is None else len(encode_jpeg(sheet))
    disk = checkpoint + others + previews * preview + metrics + twins + page
    memory = peak_memory(setup.device)
    if memory is not None and setup.device.type == "cpu" and isinstance(setup.windows, TrainingWindows):
        memory += setup.windows.unread
    networks = setup.method.networks.averaged.values()
    return {
        "method": request.method,
        "name": request.name,
        "run": str(request.run),
        "device": str(setup.device),
        "domains": setup.task.domains,
        "products": setup.task.products,
        "scales": setup.task.scales,
        "photographs": len(request.catalog.images),
        "skipped": len(request.catalog.skipped),
        "parameters": sum(p.numel() for net in networks for p in net.parameters()),
        "config": config.model_dump(),
        "estimated_seconds": round(min(total, request.seconds or total)),
        "estimated_memory_bytes": memory,
        "estimated_disk_bytes": round(disk),
    }


def _measure(
    request: TrainSpec, setup: Setup, feeder: Feeder, kinds: dict[Kind, tuple[int, int]]
) -> tuple[dict[Kind, float], dict[Kind, dict[str, float]]]:
    """For each kind of step, its mean seconds and a row of metrics."""
    drawn = 0
    rows: dict[Kind, dict[str, float]] = {}

    # As in the run: a GPU is waited for when the losses are logged, and computes beside Python between.
    together = LOG_EVERY if setup.device.type == "cuda" else 1

    def run(kind: Kind) -> float:
        """The seconds of `together` steps."""
        nonlocal drawn
        step = kinds[kind][1]
        began = time.perf_counter()
        losses: dict[str, torch.Tensor] = {}
        for _ in range(together):
            batch, rng = feeder.batch(drawn), torch_rng(request.seed, ranks.index(), drawn)
            losses = setup.method.training_step(batch, step, step / request.config.steps, rng)
            setup.average.update(step)
            drawn += 1
        values = {name: float(value) for name, value in losses.items()}
        if setup.device.type == "cuda":
            torch.cuda.synchronize(setup.device)
        rows[kind] = {"step": step, "seconds": 1000.123, **values}
        return time.perf_counter() - began

    # A first step allocates and chooses algorithms, and the first batches are prepared ahead. Where steps take long,
    # that matters little.
    times: dict[Kind, list[float]] = {kind: [run(kind)] for kind in kinds}
    commonest = max(kinds, key=lambda kind: kinds[kind][0])
    warmup = sum(each[0] for each in times.values())
    while warmup < _WARMUP_SECONDS and drawn <= feeder.depth:
        warmup += run(commonest)
    measured = 0.0
    for i in range(_MEASURED_ROUNDS if warmup < _MEASURED_SECONDS else 0):
        if measured < _MEASURED_SECONDS:
            times = {kind: ([] if i == 0 else times[kind]) + [run(kind)] for kind in kinds}
            measured += sum(each[-1] for each in times.values())
    return {kind: float(np.mean(each)) / together for kind, each in times.items()}, rows


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def peak_memory(device: torch.device) -> int | None:
    """The most memory used so far, in bytes: on the GPU, or of this process, if the system tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, where `getrusage` starts from what the process that started this one had
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii", errors="replace"))
        return int(found[1]) * 1024 if found else None
    if sys.platform == "win32":
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
