"""Find defects in images from a production line: a folder of images in, a verdict for each and a report out."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectgen import files
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import is_image_file
from defectgen.inspection import inspector
from defectgen.inspection.inspector import Finding, Repair, Unreadable
from defectgen.inspection.report import InspectionReport
from defectgen.methods import which
from defectgen.models import registry

_POLL = 0.5  # seconds
_PATIENCE = 5.0  # seconds after the last change in which an unreadable image may still be incomplete


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """What to inspect, compared with golden images in `reference`, or with each image as a model repairs it."""

    images: Path
    """A folder of images, or one image."""
    model: str | None = None
    """None means the newest model that can repair images."""
    weights: Path | None = None
    """The list of models; None means the nearest `weights.toml`."""
    reference: Path | None = None
    threshold: float | None = None
    """The score above which an image is defective, 0 to 2; None means the calibrated one."""
    calibrate: Path | None = None
    """A folder of flawless images to calibrate the threshold with. It is stored in the model file."""
    share: float = 0.99
    """The fraction of the flawless images that pass at the calibrated threshold."""
    border: int | None = None
    """Pixels along the edges that are ignored; None means the border used for calibration."""
    watch: bool = False
    """Keep inspecting new images until stopped."""
    out: Path = Path("report")
    device: str = "auto"
    workers: int = 2
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Inspected:
    """An inspected image and its finding. `row` is its record in `report.jsonl`."""

    finding: Finding | Unreadable
    row: dict[str, Any]


class InspectionJob:
    """A request with a known threshold. Iterating inspects the images; each is recorded before it is yielded.

    `threshold`, `border` and `maker` (the model, or the folder of golden images) are the settings. `inspected`,
    `defective` and `errors` are the counts so far.
    """

    def __init__(self, request: InspectRequest) -> None:
        """Load the model or find the golden images, and calibrate if requested.

        Raises:
            UsageError: options that exclude each other, no threshold, or the report already exists.
            BadInputError: images or folders are missing.
            WeightsError: there is no model that can repair images.
        """
        if request.reference is not None and request.model is not None:
            raise UsageError("--reference replaces --model: give one of them")
        if request.threshold is not None and request.calibrate is not None:
            raise UsageError("--calibrate determines the threshold that --threshold sets: give one of them")
        if not request.images.exists():
            raise BadInputError(f"{request.images}: no such file or folder")
        self._request = request
        self._repair, known, model_border, self.maker = _repair(request)
        self.border = request.border if request.border is not None else model_border if request.calibrate is None else 0
        if request.calibrate is not None:
            flawless = list_images(request.calibrate)
            findings = inspector.inspect(flawless, self._repair, 0.0, border=self.border, workers=request.workers)
            known = inspector.calibrate(findings, request.share)
            if request.reference is None:
                _store_threshold(self.maker, request.weights, known, self.border)
        threshold = request.threshold if request.threshold is not None else known
        self.calibrated = threshold is not None
        if threshold is None:
            if request.reference is None:
                raise UsageError(f"--model {self.maker}: has no threshold yet; give --calibrate DIR or --threshold")
            threshold = inspector.UNCALIBRATED
        self.threshold = threshold
        self._report = InspectionReport(request.out, resume=request.resume, overwrite=request.overwrite)
        self._arrivals = _Arrivals(request.images, self._report.done, forever=request.watch)
        self.inspected = self.defective = self.errors = 0

    def __len__(self) -> int:
        """The number of images known so far."""
        return max(self.inspected, len(self._arrivals))

    @property
    def totals(self) -> dict[str, int]:
        """The counts so far."""
        return {"inspected": self.inspected, "defective": self.defective, "errors": self.errors}

    @property
    def kept(self) -> int:
        """The number of images with a record from an earlier run."""
        return len(self._report.done) - self.inspected

    def __iter__(self) -> Iterator[Inspected]:
        request = self._request
        try:
            for finding in inspector.inspect(
                self._arrivals, self._repair, self.threshold, border=self.border, workers=request.workers
            ):
                if isinstance(finding, Unreadable) and self._arrivals.retry_later(finding.path):
                    continue
                row = self._report.add(finding)
                self.inspected += 1
                self.errors += "error" in row
                self.defective += bool(row.get("defective"))
                yield Inspected(finding, row)
        finally:
            if self._report.done:
                self._report.write_table()


def inspect(request: InspectRequest) -> InspectionJob:
    """Inspect images: an iterable of findings, each recorded in `OUT/report.jsonl` before it is yielded.

    >>> import defectgen
    >>> from pathlib import Path
    >>> request = defectgen.InspectRequest(images=Path("line"), reference=Path("golden"))
    >>> for inspected in defectgen.inspect(request):
    ...     print(inspected.finding.path.name, inspected.finding.defective)
    0.png False
    1.png True

    A `Finding` has `score`, the dissimilarity to the defect-free version at the worst place, 0 to 2; `threshold`;
    `defective`; and `mask`, bool [H, W].

    Raises:
        UsageError, BadInputError, WeightsError: as `InspectionJob`.
    """
    return InspectionJob(request)


def list_images(folder: Path) -> list[Path]:
    """The images in a folder, sorted by name, or the one image if `folder` is a file.

    Raises:
        BadInputError: there are none.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder")
    paths = _images_in(folder)
    if not paths:
        raise BadInputError(f"{folder}: no images in it")
    return paths


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_image_file(path) and not path.name.startswith("."))


def _repair(request: InspectRequest) -> tuple[Repair, float | None, int, str]:
    """The `Repair`, its calibrated threshold, the border of the calibration, and its name."""
    if request.reference is not None:
        if not request.reference.is_dir():
            raise BadInputError(f"--reference {request.reference}: no such folder")
        return inspector.golden(request.reference), None, 0, str(request.reference)

    from defectgen.inspection.reconstruction import NetworkRepair  # golden images need no PyTorch

    lists = registry.find_registry(request.weights)
    entry = registry.find(name=request.model, files=lists, methods=which(lambda row: row.repairs))
    registry.verify(entry)
    repair = NetworkRepair(entry.file, request.device)
    return repair, repair.threshold, repair.border, entry.name


def _store_threshold(model: str, weights: Path | None, threshold: float, border: int) -> None:
    """Write a calibrated threshold into a model's file, and its new SHA-256 into the list of models."""
    from defectgen.models.model import keep_threshold

    for file in registry.find_registry(weights):
        entry = next((each for each in registry.read(file) if each.name == model), None)
        if entry is not None:
            keep_threshold(entry.file, threshold, border)
            registry.add(entry.model_copy(update={"sha256": files.sha256(entry.file)}), file)
            return


class _Arrivals:
    """The images of a folder that are not yet done; if `forever`, also new ones, with None while there are none.

    A new image is yielded once its size and time stay the same between two polls. An image that is unreadable because
    it is still being written is yielded again after it changes.
    """

    def __init__(self, images: Path, done: set[str], *, forever: bool) -> None:
        self._images, self._forever, self._done = images, forever, done
        self._paths = [] if forever else [path for path in list_images(images) if str(path) not in done]
        self._taken: set[Path] = set()

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Path | None]:
        yield from self._paths
        previous: dict[Path, tuple[int, int]] = {}
        while self._forever:
            now = {path: _stamp(path) for path in self._waiting()}
            for path, stamp in now.items():
                if stamp[0] and previous.get(path) == stamp:
                    self._taken.add(path)
                    yield path
            previous = now
            yield None
            time.sleep(_POLL)

    def _waiting(self) -> list[Path]:
        return [path for path in _images_in(self._images) if path not in self._taken and str(path) not in self._done]

    def retry_later(self, path: Path) -> bool:
        """Whether an unreadable image changed recently, so that it may be incomplete and is to be yielded again."""
        recent = self._forever and time.time() - _stamp(path)[1] / 1e9 < _PATIENCE
        if recent:
            self._taken.discard(path)
        return recent


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # removed in the meantime
        return 0, 0
    return status.st_size, status.st_mtime_ns
