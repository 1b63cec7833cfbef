"""Trains a method: the loop with averaged weights, previews, metrics and checkpoints, and exact resuming.

Several ranks train the same networks: each draws its part of the batches, and `Networks.step` averages the gradients.

Every random number of a step depends only on (seed, rank, step), and every schedule follows the progress: the larger
part of the steps and of the time that is used. So a checkpoint needs the step and the seconds, and no state of a random
generator.
"""

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defectgen import files, ranks
from defectgen.device import keep_freed_memory, resolve, torch_rng
from defectgen.errors import ExitCode, OutOfMemoryError, StoppedError, UsageError
from defectgen.imaging.images import encode_jpeg
from defectgen.methods.base import Method, MethodConfig, Monitored, Staged, Task
from defectgen.methods.networks import Average
from defectgen.models import checkpoint, registry
from defectgen.models.model import build
from defectgen.text import duration
from defectgen.training import initial
from defectgen.training.data import (
    Feeder,
    TrainingData,
    TrainingWindows,
    make_task,
    training_data,
)
from defectgen.training.run import Run, TrainSpec, identity, inputs
from defectgen.training.view import LOG_EVERY

_DIAGNOSED = 20  # rows of losses that are averaged for a diagnosis
CHECKPOINT_SECONDS = 120.0
PREVIEW_SECONDS = 180.0
_FIRST_PREVIEW = 64  # steps
# What decides the shapes of networks in both stages.
_SHAPES = ("image_size", "width", "max_width", "z_dim", "w_dim", "mapping_layers", "by_category")


@dataclass(frozen=True)
class Progress:
    """The state of a run after a step. `losses` are set at every tenth step, `diagnosis` if a failure is detected."""

    step: int
    steps: int
    images_per_second: float
    seconds_left: float
    losses: Mapping[str, float] = field(default_factory=dict)
    diagnosis: str | None = None
    passes: float = 0.0
    """How often each image was seen, on average."""


@dataclass(frozen=True)
class Trained:
    """The result of a run. `stopped` is the exit code for the signal that ended it early, if one did."""

    model: Path
    task: Task
    steps: int
    seconds: float
    losses: Mapping[str, float]
    stopped: ExitCode | None


@dataclass(frozen=True)
class Setup:
    """What a run consists of before its first step."""

    device: torch.device
    windows: TrainingData
    task: Task
    method: Method
    average: Average
    started: initial.Started
    backbone: dict[str, Tensor] | None
    """Another run's backbone, which replaces the first stage."""
    inputs: list[list[str]]
    identity: dict[str, Any]


def prepare(request: TrainSpec) -> Setup:
    """Build what a run needs. Writes nothing.

    Raises:
        UsageError: the backbone or the model to start from does not fit.
    """
    device = resolve(request.device)
    keep_freed_memory()
    windows = training_data(request.method, request.catalog, request.config)
    backbone, before = _read_backbone(request, windows)
    task = make_task(windows)
    method = build(request.method, request.config, task, device, request.seed)
    started = initial.start(request, method)
    average = Average(method.networks.averaged, request.config.ema)
    found = inputs(request.catalog)
    known = identity(request, task, [*before, *started.trained_on], found, started.record)
    return Setup(device, windows, task, method, average, started, backbone, found, known)


def train(request: TrainSpec, on_step: Callable[[Progress], None] = lambda _: None) -> Trained:
    """Train, and write `config.json`, `metrics.jsonl`, `previews/`, `checkpoint.safetensors` and the model.

    `index.html` shows how the training goes while it runs.

    Where defects have masks, also `previews/twins.jpg`: the defects above their repaired twins. A method with two
    stages also writes `backbone.safetensors`. A time limit is divided between the stages as the steps are, and counts
    the time before the run was resumed.

    Raises:
        UsageError: the run folder is in use, or a run is resumed with another configuration or other images, or the
            model to start from does not fit, or the training diverged, or its time was over before the first step.
        WeightsError: the checkpoint is damaged, or a run to resume has only a model.
        OutOfMemoryError: the device has too little memory; the message names the batch size to try next.
        StoppedError: a signal ended the run before its first step.
    """
    config = request.config
    setup = prepare(request)
    windows, task, method, average, found = setup.windows, setup.task, setup.method, setup.average, setup.inputs
    device, backbone, started = setup.device, setup.backbone, setup.started
    run = Run(request.run, method, average, setup.identity, found)
    resumed, start, seconds_before, before_ranks = ranks.share(lambda: _begin(request, run))
    first = method.backbone_steps if isinstance(method, Staged) else 0
    if backbone is not None and not resumed:
        start = ranks.share(lambda: run.take_backbone(backbone))
    method.networks.spread()
    average.spread()
    if ranks.is_main() and isinstance(windows, TrainingWindows) and (sheet := windows.sheet()) is not None:
        files.write(request.run / "previews" / "twins.jpg", encode_jpeg(sheet))

    steps = config.steps
    clock = _Clock(steps, request.seconds, start / config.steps if backbone is not None else 0.0)
    feeder = Feeder(windows, config.batch_size, request.seed, device, request.workers)
    checkpointed = previewed = time.monotonic()
    began = checkpointed - seconds_before
    step, losses = start, dict[str, float]()
    monitor, view = _Monitor(method), run.view(request.name, start, config.steps)
    stop: list[ExitCode] = []  # what all ranks agreed on
    try:
        examples = feeder.examples()
        if resumed and previewed_early(start) and not run.has_preview(start):
            view.preview(*run.preview(examples, start, request.seed))  # a kill came between it and the checkpoint
        with _stop_signals() as asked:
            while (progress := _agreed(clock.progress(step, time.monotonic() - began), asked, stop)) < 1 and not stop:
                batch = feeder.batch(step)
                method.networks.wait(waiting=started.alone(config, progress, first / config.steps))
                tensors = method.training_step(batch, step, progress, torch_rng(request.seed, ranks.index(), step))
                step += 1
                average.update(step if step <= first else step - first)
                now = time.monotonic()
                if (
                    start < first
                    and step <= first
                    and _agreed(clock.progress(step, now - began), asked, stop) >= first / steps
                ):
                    run.finish_backbone()
                    step = first
                logged = step % LOG_EVERY == 0
                if logged:
                    losses = {name: float(value) for name, value in tensors.items()}
                    _check_finite(losses, step)
                    row = {"step": step, "seconds": round(now - began, 3), **losses}
                    run.log(row)
                    view.log(row)
                rate = (step - start) / max(now - began - seconds_before, 1e-9)
                told = _told(step, rate, config, request.seconds, now - began, losses if logged else {})
                told = replace(told, passes=step * config.batch_size / len(found))
                if logged:
                    told = replace(told, diagnosis=monitor.add(losses))
                if step == start + 1 and before_ranks != ranks.count():
                    told = replace(told, diagnosis=_other_ranks(before_ranks))
                view.step(told.step, told.steps, told.images_per_second, told.seconds_left, told.diagnosis)
                on_step(told)
                if is_power_of_two(step) or now - checkpointed > CHECKPOINT_SECONDS:
                    run.checkpoint(step, now - began)
                    checkpointed = time.monotonic()
                if previewed_early(step) or now - previewed > PREVIEW_SECONDS:
                    view.preview(*run.preview(examples, step, request.seed))
                    previewed = time.monotonic()
            if step > start:
                run.checkpoint(step, time.monotonic() - began)
            if step > start or (step > 0 and not run.has_preview(step)):
                view.preview(*run.preview(examples, step, request.seed))
        how = "stopped, --resume continues" if stop else "done"
        view.end(f"{how}, after {duration(time.monotonic() - began)}")
    except torch.OutOfMemoryError as error:
        view.end("ended: out of memory")
        raise too_large(config, device) from error
    except BaseException as error:
        view.end(f"ended: {str(error) or type(error).__name__}")
        raise
    finally:
        feeder.close()
    if step == 0 and stop:
        raise StoppedError(f"{request.run}: stopped before the first step; start it with --resume", stop[0])
    if step == 0:
        raise UsageError(f"{request.run}: the time was over before the first step; give more, with --resume")
    model = run.save_model(step)
    return Trained(model, task, step, time.monotonic() - began, losses, stop[0] if stop else None)


def too_large(config: MethodConfig, device: torch.device) -> OutOfMemoryError:
    """The error for a device that ran out of memory."""
    smaller = max(1, config.batch_size // 2)
    return OutOfMemoryError(
        f"{device} ran out of memory with --batch-size {config.batch_size}; try --batch-size {smaller}"
    )


def _begin(request: TrainSpec, run: Run) -> tuple[bool, int, float, int]:
    """Begin a run, or resume it: whether it is resumed, its next step, the seconds and the ranks that it had so far."""
    if request.resume and run.can_resume():
        return True, *run.resume()
    return False, *run.begin(overwrite=request.overwrite), ranks.count()


def _agreed(progress: float, asked: Sequence[ExitCode], stop: list[ExitCode]) -> float:
    """The progress of the furthest rank. A signal to any rank stops all, after the same step.

    Only what has been exchanged fills `stop`: a signal that comes during the exchange waits for the next one.
    """
    progress, code = ranks.largest(progress, asked[0] if asked else 0)
    if code and not stop:
        stop.append(ExitCode(int(code)))
    return progress


def _other_ranks(before: int) -> str:
    return (
        f"the run had {before} process{'es' * (before > 1)} and now has {ranks.count()}, which draw other batches of "
        "the same images: the model will not be that of an uninterrupted run"
    )


def is_power_of_two(step: int) -> bool:
    """Checkpoints also come at these steps, so that the first ones come early."""
    return step & (step - 1) == 0


def previewed_early(step: int) -> bool:
    return step >= _FIRST_PREVIEW and is_power_of_two(step)


def _read_backbone(request: TrainSpec, windows: TrainingData) -> tuple[dict[str, Tensor] | None, list[str]]:
    """The requested backbone, or that of a resumed run, and the SHA-256 of the images that it was trained on.

    Sets the scales of `windows` to those of the backbone, unless it takes any.

    Raises:
        UsageError: the backbone does not fit the method or the images.
    """
    own = request.run / registry.BACKBONE
    path = own if request.resume and own.is_file() else request.backbone
    if path is None:
        return None, []
    tensors, saved = checkpoint.load(path, "task", "config", "method")
    task, before, now = saved["task"], saved["config"], request.config.model_dump(mode="json")
    required = {"method": request.method, "channels": windows.channels, **{k: now[k] for k in _SHAPES if k in now}}
    for key, value in required.items():
        found = {**before, "method": saved["method"], "channels": task["channels"]}.get(key)
        if found != value:
            raise UsageError(f"{path}: has {key} {found}, but this run needs {value}")
    if request.config.has_own_scales:  # it makes normals at any scale
        return tensors, saved.get("trained_on", [])
    known = {product: next(iter(scales.values())) for product, scales in task["scales"].items()}
    for product, scales in windows.scales.items():
        if product not in known and len(known) > 1:
            raise UsageError(f"{path}: knows {', '.join(known)}, not {product}; name the product with --product")
        scales.update(dict.fromkeys(scales, known.get(product, next(iter(known.values())))))
    return tensors, saved.get("trained_on", [])


@dataclass(frozen=True)
class _Clock:
    """The progress of a run, 0..1. `before` is the part that another run's backbone replaces."""

    steps: int
    seconds: float | None
    before: float

    def progress(self, step: int, elapsed: float) -> float:
        """The larger part of the steps and of the time, `elapsed` seconds, that is used."""
        of_time = 0.0 if self.seconds is None else self.before + (1 - self.before) * elapsed / self.seconds
        return min(1.0, max(step / self.steps, of_time))


def _told(
    step: int, rate: float, config: MethodConfig, limit: float | None, elapsed: float, losses: Mapping[str, float]
) -> Progress:
    left = (config.steps - step) / rate
    if limit is not None:
        left = min(left, max(limit - elapsed, 0.0))
    return Progress(step, config.steps, rate * config.batch_size, left, losses)


class _Monitor:
    """Passes the average over the latest rows of losses to the method's `diagnose`, separately for each stage."""

    def __init__(self, method: Method) -> None:
        self._method = method if isinstance(method, Monitored) else None
        self._rows: deque[Mapping[str, float]] = deque(maxlen=_DIAGNOSED)

    def add(self, losses: Mapping[str, float]) -> str | None:
        if self._rows and not losses.keys() & self._rows[-1].keys():
            self._rows.clear()
        self._rows.append(losses)
        if self._method is None or len(self._rows) < _DIAGNOSED:
            return None
        names = set.intersection(*(set(row) for row in self._rows))
        return self._method.diagnose({name: float(np.mean([row[name] for row in self._rows])) for name in names})


def _check_finite(losses: Mapping[str, float], step: int) -> None:
    for name, value in losses.items():
        if not np.isfinite(value):
            raise UsageError(
                f"step {step}: the loss {name} is {value}: training diverged; restart with a lower --set lr=..."
            )


@contextmanager
def _stop_signals() -> Iterator[list[ExitCode]]:
    """A list that the first SIGINT or SIGTERM fills, for `_agreed`. A second signal kills at once."""
    asked: list[ExitCode] = []
    codes = {signal.SIGINT: ExitCode.SIGINT, signal.SIGTERM: ExitCode.SIGTERM}

    def handle(number: int, _frame: FrameType | None) -> None:
        if asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked.append(codes[signal.Signals(number)])

    before = {number: signal.signal(number, handle) for number in codes}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
