"""Training a method: the loop, averaged weights, previews, metrics, checkpoints, and resuming them exactly.

Every random number of a step comes from (seed, rank, step) and every schedule is a function of the step, so a
checkpoint holds no state of a random generator, and resuming needs none.
"""

import json
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from defectgen import __version__, checkpoint, files
from defectgen.contents import TrainingContents
from defectgen.device import resolve, torch_rng
from defectgen.errors import ExitCode, OutOfMemoryError, StoppedError, UsageError, WeightsError
from defectgen.folders import NORMAL, Catalog, Source, require_masks, unite
from defectgen.images import encode_jpeg
from defectgen.methods import MethodName, get
from defectgen.methods.base import (
    Batch,
    GenerateBatch,
    Learns,
    Method,
    MethodConfig,
    Staged,
    Task,
    Watched,
    flatten,
    unflatten,
)
from defectgen.seeding import numpy_rng
from defectgen.windows import Row, TrainingLabels, TrainingMasks, TrainingPairs, TrainingWindows, stack

TrainingData = TrainingWindows | TrainingContents

DEFECT = "defect"
"""What the categories become together for a method that tells none apart."""
_LOG_EVERY = 10  # steps
_WATCHED = 20  # rows of losses that are looked at together for trouble
_CHECKPOINT_SECONDS = 120.0
_PREVIEW_SECONDS = 180.0
_RANK = 0
_BACKBONE = "backbone.safetensors"
_SHAPES = ("image_size", "width", "max_width", "z_dim", "w_dim", "mapping_layers")  # of networks that stages share


@dataclass(frozen=True)
class TrainRequest:
    """All that a training run depends on. `steps` and `seconds` end it, whichever comes first."""

    method: MethodName
    name: str
    run: Path
    catalog: Catalog
    sources: tuple[Source, ...]
    config: MethodConfig
    seconds: float | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    resume: bool = False
    overwrite: bool = False
    backbone: Path | None = None
    """A `backbone.safetensors` of an earlier run, in place of the first stage."""


@dataclass(frozen=True)
class Progress:
    """Where a run is after a step. Losses are there on every tenth step; `trouble` where the method sees some."""

    step: int
    steps: int
    images_per_second: float
    seconds_left: float
    losses: Mapping[str, float] = field(default_factory=dict)
    trouble: str | None = None


@dataclass(frozen=True)
class Trained:
    """What a run left. `stopped` is the exit code of the signal that ended it early, if one did."""

    model: Path
    task: Task
    steps: int
    seconds: float
    losses: Mapping[str, float]
    stopped: ExitCode | None


class Average:
    """The exponential moving average of a method's networks, kept beside them.

    The decay grows to its value as (1 + step) / (10 + step), so that a short run's average is not its first weights.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self._networks = networks
        self._decay = decay
        self.copies = {name: deepcopy(network).requires_grad_(False) for name, network in networks.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, network in self._networks.items():
            torch._foreach_lerp_(list(self.copies[name].parameters()), list(network.parameters()), weight)

    def state(self) -> dict[str, Tensor]:
        return {key: value for name, copy in self.copies.items() for key, value in flatten(name, copy).items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, copy in self.copies.items():
            copy.load_state_dict(unflatten(name, state))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lend the averaged weights to the networks themselves."""
        own = {name: deepcopy(network.state_dict()) for name, network in self._networks.items()}
        for name, network in self._networks.items():
            network.load_state_dict(self.copies[name].state_dict())
        try:
            yield
        finally:
            for name, network in self._networks.items():
                network.load_state_dict(own[name])


class Feeder:
    """Batches by step, drawn ahead of the network by a few threads; a batch is a function of (seed, rank, step)."""

    def __init__(self, windows: TrainingData, size: int, seed: int, device: torch.device, workers: int) -> None:
        self._windows, self._size, self._seed, self._device = windows, size, seed, device
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="windows")
        self._ahead: dict[int, Future[Batch]] = {}
        self._depth = 2 * max(1, workers)

    def batch(self, step: int) -> Batch:
        for coming in range(step, step + self._depth):
            if coming not in self._ahead:
                self._ahead[coming] = self._pool.submit(self._draw, coming)
        return self._move(self._ahead.pop(step).result())

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def examples(self) -> Batch:
        """The same rows throughout a run, to see it make progress on them."""
        return self._move(self._stack(self._windows.examples(numpy_rng(self._seed), count=2)))

    def _draw(self, step: int) -> Batch:
        rng = numpy_rng(self._seed, _RANK, step)
        return self._stack([self._windows.row(rng) for _ in range(self._size)])

    def _stack(self, rows: list[Row]) -> Batch:
        x, y, p = stack(row.source for row in rows)
        x_ref, y_ref, p_ref = stack(row.reference for row in rows)
        arrays = {"x": x, "y": y, "p": p, "x_ref": x_ref, "y_ref": y_ref, "p_ref": p_ref}
        maps = [row.reference.a for row in rows if row.reference.a is not None]
        if maps:
            arrays["a_ref"] = np.stack(maps)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return Batch(**tensors)

    def _move(self, batch: Batch) -> Batch:
        def move(value: Tensor) -> Tensor:
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
            return value.to(self._device, non_blocking=True, memory_format=layout)

        return Batch(**{name: move(value) for name, value in vars(batch).items() if value is not None})


def train(request: TrainRequest, on_step: Callable[[Progress], None] = lambda _: None) -> Trained:
    """Train, leaving `config.json`, `metrics.jsonl`, `previews/`, `checkpoint.safetensors` and the model.

    A method with two stages also leaves `backbone.safetensors`. Of a time limit, each stage gets its part of the steps.

    Raises:
        UsageError: the run folder is taken, or is resumed with another configuration.
        WeightsError: nothing to resume, or a checkpoint that is damaged.
        OutOfMemoryError: naming the batch size to try next.
    """
    config, device = request.config, resolve(request.device)
    windows = training_data(request.method, request.catalog, config.image_size)
    backbone, before = _read_backbone(request, windows)
    task = make_task(windows)
    method = build(request.method, config, task, device, request.seed)
    average = Average(method.averaged(), config.ema)
    run = _Run(request.run, method, average, _identity(request, task, before))
    start = run.resume() if request.resume else run.begin(overwrite=request.overwrite)
    first = method.backbone_steps if isinstance(method, Staged) else 0
    if backbone is not None and not request.resume:
        start = run.take_backbone(backbone)

    backbone_seconds = math.inf if request.seconds is None else request.seconds * first / config.steps
    feeder = Feeder(windows, config.batch_size, request.seed, device, request.workers)
    began = checkpointed = previewed = time.monotonic()
    step, losses = start, dict[str, float]()
    watch = _Watch(method)
    try:
        examples = feeder.examples()
        with _stop_signals() as stop:
            while step < config.steps and not stop:
                batch = feeder.batch(step)
                tensors = method.training_step(batch, step, torch_rng(request.seed, _RANK, step))
                step += 1
                average.update(step if step <= first else step - first)
                now = time.monotonic()
                if start < first and step <= first and (step == first or now - began >= backbone_seconds):
                    run.finish_backbone()
                    step = first
                logged = step % _LOG_EVERY == 0
                if logged:
                    losses = {name: float(value) for name, value in tensors.items()}
                    _check_finite(losses, step)
                    run.log({"step": step, "seconds": round(now - began, 3), **losses})
                progress = _progress(step, start, config, request.seconds, now - began, losses if logged else {})
                on_step(replace(progress, trouble=watch.look(losses)) if logged else progress)
                # Also at the powers of two: the first sign of life, and of trouble, comes early.
                early = step & (step - 1) == 0
                if early or now - checkpointed > _CHECKPOINT_SECONDS:
                    run.checkpoint(step)
                    checkpointed = time.monotonic()
                if (early and step >= 64) or now - previewed > _PREVIEW_SECONDS:
                    run.preview(examples, step, request.seed)
                    previewed = time.monotonic()
                if request.seconds is not None and now - began >= request.seconds:
                    break
            if step > start:
                run.checkpoint(step)
                run.preview(examples, step, request.seed)
    except torch.OutOfMemoryError as error:
        smaller = max(1, config.batch_size // 2)
        raise OutOfMemoryError(
            f"{device} ran out of memory with --batch-size {config.batch_size}; try --batch-size {smaller}"
        ) from error
    finally:
        feeder.close()
    if step == 0:
        raise StoppedError(f"{request.run}: stopped before the first step, nothing is saved", stop[0])
    model = run.save_model(step)
    return Trained(model, task, step, time.monotonic() - began, losses, stop[0] if stop else None)


def training_data(name: MethodName, catalog: Catalog, image_size: int) -> TrainingData:
    """What a method learns: windows of photographs, or contents on a pure background.

    Raises:
        BadInputError: the method needs masks, and a defect has none.
    """
    method = get(name)
    if method.needs.masks:
        require_masks(catalog)
    if method.learns == "pairs" and len(catalog.categories) > 1:
        catalog = _as_one_category(catalog)
    if method.learns in ("labels", "masks"):
        catalog = unite(catalog)
    kinds: dict[Learns, type[TrainingData]] = {
        "domains": TrainingWindows,
        "pairs": TrainingPairs,
        "labels": TrainingLabels,
        "masks": TrainingMasks,
        "contents": TrainingContents,
    }
    return kinds[method.learns](catalog, image_size, catalog.products, (NORMAL, *catalog.categories))


def _read_backbone(request: TrainRequest, windows: TrainingData) -> tuple[dict[str, Tensor] | None, list[str]]:
    """The backbone asked for, or the one that a resumed run has, and the photographs that it saw.

    The windows are then seen at its scale.

    Raises:
        UsageError: it does not fit the method or the photographs.
    """
    own = request.run / _BACKBONE
    path = own if request.resume and own.is_file() else request.backbone
    if path is None:
        return None, []
    tensors, saved = checkpoint.load(path)
    task, before, now = saved["task"], saved["config"], request.config.model_dump(mode="json")
    wanted = {"method": request.method.value, "channels": windows.channels, **{k: now[k] for k in _SHAPES if k in now}}
    for key, value in wanted.items():
        found = {**before, "method": saved["method"], "channels": task["channels"]}.get(key)
        if found != value:
            raise UsageError(f"{path}: has {key} {found}, but {value} is wanted")
    known = {product: next(iter(scales.values())) for product, scales in task["scales"].items()}
    for product, scales in windows.scales.items():
        if product not in known and len(known) > 1:
            raise UsageError(f"{path}: knows {', '.join(known)}, not {product}; name it with --product")
        scales.update(dict.fromkeys(scales, known.get(product, next(iter(known.values())))))
    return tensors, saved.get("trained_on", [])


def _as_one_category(catalog: Catalog) -> Catalog:
    samples = (s if s.category == NORMAL else s.model_copy(update={"category": DEFECT}) for s in catalog.samples)
    return catalog.model_copy(update={"samples": tuple(samples)})


def make_task(windows: TrainingData) -> Task:
    shapes = windows.shapes if isinstance(windows, TrainingLabels) else {}
    return Task(
        domains=windows.domains, products=windows.products, channels=windows.channels, scales=windows.scales,
        shapes=shapes,
    )  # fmt: skip


def build(name: MethodName, config: MethodConfig, task: Task, device: torch.device, seed: int) -> Method:
    """A method with its first weights, which the seed alone decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get(name)(config, task, device)


def load_method(path: Path, device: torch.device) -> tuple[Method, dict[str, Any]]:
    """A trained method from its `model.safetensors`, ready to generate, and what the file says of itself."""
    tensors, saved = checkpoint.load(path)
    try:
        cls = get(MethodName(saved["method"]))
        method = cls(cls.Config.model_validate(saved["config"]), Task.model_validate(saved["task"]), device)
        for name, network in method.averaged().items():
            network.load_state_dict(unflatten(name, tensors))
            network.eval().requires_grad_(False)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a model of this version of defectgen ({__version__}): {error}") from error
    return method, saved


def estimate(request: TrainRequest) -> dict[str, Any]:
    """What a run would be, for `--dry-run`: its counts and, from two steps on noise, its time and memory."""
    config, device = request.config, resolve(request.device)
    windows = training_data(request.method, request.catalog, config.image_size)
    backbone, _ = _read_backbone(request, windows)
    task = make_task(windows)
    method = build(request.method, config, task, device, request.seed)
    first = min(method.backbone_steps if isinstance(method, Staged) else 0, config.steps)
    feeder = Feeder(windows, config.batch_size, request.seed, device, 1)

    def of_steps(start: int, count: int) -> float:
        """The seconds that `count` steps from `start` on take, by those of two, after two to warm up."""
        seconds = []
        for step in range(4 if count else 0):
            began = time.perf_counter()
            method.training_step(feeder.batch(step), start + step, torch_rng(request.seed, _RANK, step))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        return count * float(np.mean(seconds[2:])) if seconds else 0.0

    try:
        total = of_steps(0, first if backbone is None else 0) + of_steps(first, config.steps - first)
    finally:
        feeder.close()
    state_bytes = sum(tensor.nbytes for tensor in method.state().values())
    return {
        "method": request.method.value,
        "name": request.name,
        "run": str(request.run),
        "device": str(device),
        "domains": task.domains,
        "products": task.products,
        "scales": task.scales,
        "photographs": len(request.catalog.samples),
        "skipped": len(request.catalog.skipped),
        "parameters": sum(p.numel() for net in method.averaged().values() for p in net.parameters()),
        "config": config.model_dump(),
        "estimated_seconds": round(min(total, request.seconds or total)),
        "estimated_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "estimated_disk_bytes": 2 * state_bytes,
    }


class _Run:
    """A run folder: what is written there, when, and how it is taken up again."""

    def __init__(self, folder: Path, method: Method, average: Average, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._method = method
        self._average = average
        self._identity = identity
        self._checkpoint = folder / "checkpoint.safetensors"
        self._metrics = folder / "metrics.jsonl"

    def begin(self, *, overwrite: bool) -> int:
        if self._checkpoint.exists() and not overwrite:
            raise UsageError(
                f"{self.folder}: a run is there; use --resume to go on, --overwrite to replace it, or another --name"
            )
        for stale in (self._checkpoint, self._metrics, *(self.folder / "previews").glob("*.jpg")):
            stale.unlink(missing_ok=True)
        files.write(self.folder / "config.json", json.dumps(self._identity, indent=2, ensure_ascii=False) + "\n")
        return 0

    def resume(self) -> int:
        if not self._checkpoint.exists():
            raise WeightsError(f"{self._checkpoint}: no checkpoint to resume; run without --resume")
        tensors, saved = checkpoint.load(self._checkpoint)
        for key in ("method", "task", "config", "seed"):
            before, now = saved["identity"][key], self._identity[key]
            if key == "config":  # more steps may be asked for; all else must be as it was
                before, now = {**before, "steps": 0}, {**now, "steps": 0}
            if before != now:
                raise UsageError(
                    f"{self.folder}: cannot resume, {_difference(key, before, now)}; use --overwrite to start anew"
                )
        self._method.load_state(unflatten("training", tensors))
        self._average.load_state(unflatten("average", tensors))
        self._forget_after(saved["step"])
        return int(saved["step"])

    def _forget_after(self, step: int) -> None:
        """Drop the metrics of steps after the checkpoint: they will be taken again."""
        if not self._metrics.exists():
            return
        lines = self._metrics.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        files.write(self._metrics, "".join(kept))

    def log(self, row: Mapping[str, float]) -> None:
        with files.disk_errors(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def checkpoint(self, step: int) -> None:
        tensors = {f"training.{name}": value for name, value in self._method.state().items()}
        tensors |= {f"average.{name}": value for name, value in self._average.state().items()}
        checkpoint.save(self._checkpoint, tensors, {"step": step, "identity": self._identity})

    def preview(self, batch: Batch, step: int, seed: int) -> None:
        """A sheet, a row an example, from left to right: a normal, three defects on it, a real one of that kind.

        Of methods that make whole images: what they made without the defect, its mask, with it, and a real one.
        """
        columns = [batch.x]
        with self._average.in_place():
            for i in range(3):
                rngs = [torch_rng(seed, i, row) for row in range(len(batch.x))]
                made = self._method.generate(GenerateBatch(batch.x, batch.y_ref, rngs))
                if made.normal is not None and made.mask is not None:
                    columns = [made.normal, made.mask.expand_as(made.x) * 2 - 1, made.x]
                    break
                columns.append(made.x)
        columns.append(batch.x_ref)
        sheet = torch.cat([torch.cat(list(column.float()), dim=1) for column in columns], dim=2)
        pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        image = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        files.write(self.folder / "previews" / f"{step:07d}.jpg", encode_jpeg(image))

    def finish_backbone(self) -> None:
        """End the first stage: the averaged weights are what the second one begins with."""
        assert isinstance(self._method, Staged)
        for name, network in self._method.averaged().items():
            network.load_state_dict(self._average.copies[name].state_dict())
        checkpoint.save(self.folder / _BACKBONE, self._method.backbone(), self._identity)

    def take_backbone(self, tensors: Mapping[str, Tensor]) -> int:
        """Begin with another run's backbone; the step to begin with."""
        assert isinstance(self._method, Staged)
        self._method.take_backbone(tensors)
        for name, network in self._method.averaged().items():
            self._average.copies[name].load_state_dict(network.state_dict())
        self.finish_backbone()
        return self._method.backbone_steps

    def save_model(self, step: int) -> Path:
        path = self.folder / "model.safetensors"
        checkpoint.save(path, self._average.state(), {**self._identity, "steps": step})
        return path


def _identity(request: TrainRequest, task: Task, before: Sequence[str]) -> dict[str, Any]:
    """What a model is, and what a resumed run must share with the one that began.

    `trained_on` are the SHA-256 of all that it saw, with what its backbone saw `before`: so that an evaluation can
    tell whether it is tested on that.
    """
    return {
        "defectgen": __version__,
        "method": request.method.value,
        "config": request.config.model_dump(mode="json"),
        "task": task.model_dump(mode="json"),
        "seed": request.seed,
        "trained_on": sorted({*before, *(files.sha256(sample.path) for sample in request.catalog.samples)}),
    }


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            if before.get(name) != now.get(name):
                return f"{name} was {before.get(name)} and is {now.get(name)}"
    return f"{key} was {before} and is {now}"


def _progress(
    step: int,
    start: int,
    config: MethodConfig,
    limit: float | None,
    elapsed: float,
    losses: Mapping[str, float],
) -> Progress:
    rate = (step - start) / max(elapsed, 1e-9)
    left = (config.steps - step) / rate
    if limit is not None:
        left = min(left, max(limit - elapsed, 0.0))
    return Progress(step, config.steps, rate * config.batch_size, left, losses)


class _Watch:
    """Looks at the last rows of losses together, of one stage."""

    def __init__(self, method: Method) -> None:
        self._method = method if isinstance(method, Watched) else None
        self._rows: deque[Mapping[str, float]] = deque(maxlen=_WATCHED)

    def look(self, losses: Mapping[str, float]) -> str | None:
        if self._rows and not losses.keys() & self._rows[-1].keys():
            self._rows.clear()
        self._rows.append(losses)
        if self._method is None or len(self._rows) < _WATCHED:
            return None
        names = set.intersection(*(set(row) for row in self._rows))
        return self._method.trouble({name: float(np.mean([row[name] for row in self._rows])) for name in names})


def _check_finite(losses: Mapping[str, float], step: int) -> None:
    for name, value in losses.items():
        if not np.isfinite(value):
            raise UsageError(
                f"step {step}: the loss {name} is {value}, training went astray; start anew with a smaller --set lr"
            )


@contextmanager
def _stop_signals() -> Iterator[list[ExitCode]]:
    """A list that a first SIGINT or SIGTERM fills, to be seen at a step's end; a second one kills at once."""
    stop: list[ExitCode] = []
    codes = {signal.SIGINT: ExitCode.SIGINT, signal.SIGTERM: ExitCode.SIGTERM}

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.append(codes[signal.Signals(number)])

    before = {number: signal.signal(number, handle) for number in codes}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
