"""Train a model: folders of images in, a run folder and an entry in `weights.toml` out."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from defectgen import files, ranks
from defectgen.device import check_unshared, resolve
from defectgen.errors import ExitCode, UsageError, WeightsError
from defectgen.folders import Catalog, OnBad, OnFile, ProductFolders, Skipped, read_catalog
from defectgen.inspection import inspector
from defectgen.inspection.calibration import calibrate
from defectgen.inspection.inspector import Criteria
from defectgen.inspection.reconstruction import NetworkRepair
from defectgen.inspection.scores import SSIM
from defectgen.methods import info, which
from defectgen.models import checkpoint, registry
from defectgen.models.model import SavedCriteria, keep_criteria
from defectgen.text import slug
from defectgen.training import costs, trainer
from defectgen.training.choice import suited
from defectgen.training.data import hold_out, rows_of_rank
from defectgen.training.run import Initial, TrainSpec
from defectgen.training.trainer import Progress, Trained

__all__ = ["FEW", "Progress", "TrainJob", "TrainRequest", "TrainResult", "train"]

FEW = 20
"""The least number of flawless images for a useful 99th percentile."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train on which images.

    Training ends after `steps` or `seconds`, whichever comes first. None means the preset's steps.
    """

    sources: tuple[ProductFolders, ...]
    method: str | None = None
    """None means the one that suits the images."""
    category: str | None = None
    """The category of a flat folder of defects, or the one of several category folders to use."""
    on_bad: OnBad = "skip"
    preset: str | None = None
    """`paper`, `compact` or `tiny`; None means `compact` on CUDA, `tiny` on a CPU."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Hyperparameters that replace the preset's, as in `--set`."""
    backbone: str | None = None
    """A model whose backbone replaces the first stage of training."""
    init: str | Path | None = None
    """A model of the same method to start from: its name in a `weights.toml`, its file, or its run folder. Categories
    and products that it does not know start from the mean of those that it knows."""
    steps: int | None = None
    seconds: float | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    name: str | None = None
    """The name of the run and the model; None means a new one from the method and the products."""
    out: Path = Path("runs")
    weights: Path | None = None
    """The list of models; None means the nearest `weights.toml`."""
    resume: bool = False
    overwrite: bool = False
    wait: bool = False
    """Wait for another run that writes to the same folder, instead of raising."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a training. `stopped` is the exit code of the signal that ended it early; None if none did."""

    name: str
    model: Path
    weights: Path
    categories: tuple[str, ...]
    products: tuple[str, ...]
    steps: int
    seconds: float
    losses: Mapping[str, float]
    skipped: tuple[Skipped, ...]
    stopped: ExitCode | None
    threshold: float | None = None
    """The threshold for `inspect`; None if the method cannot repair images."""
    calibrated_on: int = 0
    """The number of held-out normals that the threshold was calibrated on."""

    @property
    def trial(self) -> bool:
        """Whether it is too short for good samples."""
        return self.steps < registry.FEWEST_STEPS


class TrainJob:
    """A request whose images are read and checked."""

    def __init__(self, request: TrainRequest, on_file: OnFile | None = None) -> None:
        """Read each image once. `method` and `reason` say what was chosen, if the request names no method.

        Raises:
            NoDeviceError: there is no such device, or fewer than processes.
            UsageError: a bad preset or setting, a name that is taken, or a model without a backbone to share.
            WeightsError: a model to start from is missing or altered.
            BadInputError: as `read_catalog`.
        """
        given = {**request.settings}
        given |= {k: str(v) for k, v in (("steps", request.steps), ("batch_size", request.batch_size)) if v is not None}
        self.device = resolve(request.device)
        check_unshared(self.device)
        self._request = request
        initial = self._initial()
        catalog: Catalog | None = None
        if request.method is None and initial is not None:
            self.method, self.reason = str(checkpoint.load(initial.file, "method")[1]["method"]), "that of --init"
        elif request.method is None:
            catalog = self._read(on_file)
            self.method, self.reason = suited(catalog)
        else:
            self.method, self.reason = request.method, ""
        self.preset = request.preset or _preset_for(self.device, info(self.method).presets)
        self._config = info(self.method).configure(self.preset, given)
        rows_of_rank(self._config.batch_size)
        self._registry = registry.find_writable(request.weights)
        with files.writable(request.out):
            self.name = request.name if request.name is not None else ranks.share(self._new_name)
        if self.name != slug(self.name):
            raise UsageError(f"--name {self.name}: use letters, digits, '-', '_' and '.', such as {slug(self.name)}")
        self.run_folder = request.out / self.name
        with files.writable(self._registry):
            registry.check_name(self.name, self.run_folder / registry.MODEL, self._registry)
        catalog = catalog or self._read(on_file)
        self._held: list[Path] = []
        if info(self.method).repairs:
            catalog, self._held = hold_out(catalog)
        self.images = len(catalog.images)
        self.skipped = catalog.skipped
        self.warnings = catalog.warnings
        self._spec = TrainSpec(
            method=self.method, name=self.name, run=self.run_folder, catalog=catalog, sources=request.sources,
            config=self._config, seconds=request.seconds, seed=request.seed, device=request.device,
            workers=request.workers, resume=request.resume, overwrite=request.overwrite, backbone=self._backbone(),
            init=initial,
        )  # fmt: skip

    def _read(self, on_file: OnFile | None) -> Catalog:
        request = self._request
        return read_catalog(request.sources, category=request.category, on_bad=request.on_bad, progress=on_file)

    @property
    def steps(self) -> int:
        """The number of steps, if no time limit ends the training before."""
        return self._config.steps

    @property
    def settings(self) -> dict[str, Any]:
        """Every hyperparameter, the preset, the seed and the device."""
        chosen = {"preset": self.preset, "seed": self._request.seed, "device": self._request.device}
        return {**chosen, **self._config.model_dump(mode="json")}

    def plan(self) -> dict[str, Any]:
        """The preset, counts, and estimates of time, memory and disk space from a few steps."""
        return {"preset": self.preset, **costs.estimate(self._spec)}

    def run(self, on_step: Callable[[Progress], None] = lambda _: None) -> TrainResult:
        """Train, calibrate if the method can repair images, and add the model to the list.

        Raises:
            UsageError: as `training.trainer.train`, or another process trains in the run folder, or this folder or that
                of `weights.toml` cannot be written.
            WeightsError, OutOfMemoryError: as `training.trainer.train`.
        """
        with ExitStack() as stack:
            if ranks.is_main():
                stack.enter_context(files.locked(self.run_folder, wait=self._request.wait))
                # Before the training, and not only after it, so that a folder that cannot be written is noticed.
                with files.locked(self._registry.absolute().parent, wait=True):
                    files.sweep(self._registry.absolute().parent, self._registry.name)
            trained = trainer.train(self._spec, on_step)
            return ranks.share(lambda: self._entered(trained))

    def _entered(self, trained: Trained) -> TrainResult:
        """Calibrate a model that can repair images, and add it to the list."""
        threshold = None
        if self._held:
            repair = NetworkRepair(trained.model, self._request.device)
            findings = inspector.inspect(self._held, repair, Criteria(math.inf), workers=self._request.workers)
            threshold = calibrate(SSIM, findings, border=0).threshold
            keep_criteria(trained.model, SavedCriteria(threshold=threshold))
        entry = registry.Entry(
            name=self.name,
            method=self.method,
            categories=trained.task.domains[1:],
            products=trained.task.products,
            image_size=self._config.image_size,
            channels=trained.task.channels,
            file=trained.model,
            sha256=files.sha256(trained.model),
            created=datetime.now(timezone.utc).replace(microsecond=0),
            trained_on={source.product: source.normals.absolute() for source in self._request.sources},
            steps=trained.steps,
            stopped=trained.stopped is not None,
        )
        registry.add(entry, self._registry)
        return TrainResult(
            name=self.name, model=trained.model, weights=self._registry, categories=entry.categories,
            products=entry.products, steps=trained.steps, seconds=trained.seconds, losses=trained.losses,
            skipped=self.skipped, stopped=trained.stopped, threshold=threshold, calibrated_on=len(self._held),
        )  # fmt: skip

    def _new_name(self) -> str:
        """The method and the products, with a number if that is taken. To resume or overwrite: the latest such name."""
        request = self._request
        taken = {entry.name for entry in registry.read(self._registry)} if self._registry.exists() else set()
        base = "-".join([self.method, *(slug(source.product) for source in request.sources)])
        again = request.resume or request.overwrite
        last, number = base, 1
        while (request.out / (name := base if number == 1 else f"{base}-{number}")).exists() or (
            name in taken and not again
        ):
            last, number = name, number + 1
        return last if again else name

    def _backbone(self) -> Path | None:
        """The file of the backbone to share; None if none is requested."""
        wanted, method = self._request.backbone, self.method
        if wanted is None:
            return None
        staged = which(lambda row: len(row.stages) > 1)
        if method not in staged:
            raise UsageError(f"--backbone {wanted}: {method} has no backbone to share; use {' or '.join(staged)}")
        entry = registry.find(name=wanted, files=registry.find_registry(self._request.weights), methods=(method,))
        path = entry.file.with_name(registry.BACKBONE)
        if not path.is_file():
            raise UsageError(f"--backbone {wanted}: {path} is missing; train the model again")
        return path

    def _initial(self) -> Initial | None:
        """The model to start from; None if none is requested. Also looks beside the list that gets the new model."""
        wanted = self._request.init
        if wanted is None:
            return None
        path = Path(wanted)
        if (file := path / registry.MODEL if path.is_dir() else path).is_file():
            return Initial(str(wanted), file)
        if isinstance(wanted, Path):
            raise WeightsError(f"--init {wanted}: no such model; name a {registry.MODEL}, or its run folder")
        mine = self._request.weights
        lists = [mine] if mine is not None and mine.exists() else []
        entry = registry.find(
            name=wanted,
            files=[*lists, *registry.find_registry(None)],
            methods=(self._request.method,) if self._request.method else (),
        )
        registry.verify(entry)
        return Initial(wanted, entry.file)


def train(request: TrainRequest, on_step: Callable[[Progress], None] = lambda _: None) -> TrainResult:
    """Train a model and add it to `weights.toml`. `on_step` is called after each step.

    >>> import defectgen
    >>> from pathlib import Path
    >>> part = defectgen.ProductFolders(product="part", normals=Path("photos/normals"), defects=Path("photos/defects"))
    >>> request = defectgen.TrainRequest(method="dt-gan", sources=(part,), preset="tiny", steps=2, name="part")
    >>> defectgen.train(request).categories
    ('crack', 'scratch', 'spot', 'stain')

    Writes `OUT/NAME/` with `config.json`, `metrics.jsonl`, `previews/`, `checkpoint.safetensors` and
    `model.safetensors`. The first Ctrl-C ends training after the current step and saves everything.

    Raises:
        UsageError: a bad setting, or a run folder or name that is taken.
        BadInputError: folders or images cannot be used.
        WeightsError: the checkpoint is damaged, or a run to resume has only a model.
        OutOfMemoryError: naming the batch size to try next.
    """
    return TrainJob(request).run(on_step)


def _preset_for(device: torch.device, presets: Sequence[str]) -> str:
    """The preset that suits a device; the first one if a method of another package has none of its name."""
    wanted = "compact" if device.type == "cuda" else "tiny"
    return wanted if wanted in presets else presets[0]
