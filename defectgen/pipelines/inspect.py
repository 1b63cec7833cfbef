"""Find defects in images from a production line: a folder of images in, a verdict for each and a report out."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from defectgen import files, ranks
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import ALIASES, OTHER_FORMATS, DecodedImage, is_image_file
from defectgen.inspection import inspector
from defectgen.inspection.calibration import BORDERS, Calibration, calibrate
from defectgen.inspection.inspector import Criteria, Finding, Unreadable
from defectgen.inspection.labels import Labels
from defectgen.inspection.report import InspectionReport, settings_of
from defectgen.inspection.scoring import Judged, PixelCounts, image_figures, pixel_figures
from defectgen.marking import MASKS, Marking
from defectgen.pipelines import judges
from defectgen.pipelines.judges import Judge, OnImage
from defectgen.text import recorded

__all__ = ["Calibration", "InspectRequest", "Inspected", "InspectionJob", "inspect", "list_images"]

_POLL = 0.5  # seconds
_REFRESH = 30.0  # seconds after which the page of a watched folder is written again
_REST = 20.0  # at least this many times as long as writing it took
_PATIENCE = 5.0  # seconds after the last change in which an unreadable or empty image may still be incomplete
_OTHER_IMAGES = ALIASES | OTHER_FORMATS
_ACCOMPANYING = frozenset({
    ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".md5", ".sha256", ".toml", ".tsv", ".txt",
    ".xml", ".xmp", ".yaml", ".yml",
})  # fmt: skip
"""Suffixes of files that lie beside images: lists, labels, and what systems leave, such as Thumbs.db."""


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """What to inspect, and by what: golden images in `reference`, a model, or what is learned from `normals`."""

    images: Path
    """A folder of images, or one image; with `labels` a folder as of `finding.find_labeled`."""
    labels: bool = False
    """Inspect the normals and defects of a labeled folder, and tell how well the verdicts agree with the labels."""
    marking: Marking = MASKS
    """How the defects of a labeled folder, and known ones, are marked, if not by masks in files."""
    model: str | None = None
    """None means the newest model that can repair images, or was learned from `normals`."""
    weights: Path | None = None
    """The list of models; None means the nearest `weights.toml`."""
    reference: Path | None = None
    normals: Path | None = None
    """A folder of flawless images to learn from, and to calibrate with. Needs neither a model nor golden images."""
    defects: Path | None = None
    """A folder of known defects, as for `train`, to learn from (if they have masks) or to calibrate with."""
    name: str | None = None
    """The name of the model that is learned from `normals`; None means that of their folder."""
    score: str | None = None
    """The kind of score, as in `inspection.scores`; None means the best for known defects, or the default."""
    threshold: float | None = None
    """The score above which an image is defective, 0 to 2; None means the calibrated one."""
    calibrate: Path | None = None
    """A folder of flawless images to calibrate the threshold with. It is stored in the model file."""
    share: float | None = None
    """The fraction of flawless images that pass at the calibrated threshold.

    None means the threshold with the best F1 if there are known defects, else 0.99.
    """
    border: int | None = None
    """Pixels along the edges that are ignored; None means the border used for calibration."""
    watch: bool = False
    """Keep inspecting new images until stopped."""
    out: Path = Path("report")
    device: str = "auto"
    workers: int = 2
    resume: bool = False
    """Inspect what is new, changed, or could not be read; with other settings than before it is a UsageError."""
    overwrite: bool = False
    wait: bool = False
    """Wait for another process that writes to `out`, instead of raising."""


@dataclass(frozen=True)
class Inspected:
    """An inspected image and its finding. `row` is its record in `report.jsonl`."""

    finding: Finding | Unreadable
    row: dict[str, Any]


class InspectionJob:
    """A request with a known threshold. Iterating inspects the images; each is recorded before it is yielded.

    `criteria` and `maker` (the model, or the folder of golden images) are the settings, and `calibration` is how they
    were chosen. `inspected` is the number of images inspected so far, `defective` and `errors` are those of the whole
    report, with the `kept` images of earlier runs. `unusable` are the images that could not be learned from or
    calibrated with, `known` the labels of those that were.

    With labels, `figures` are those of `labels.json`, after the iteration. Before and without labels they are None.

    The report's folder is locked until the iteration ends. Several ranks share the images, after rank 0 has learned and
    calibrated; it alone records and yields them.
    """

    figures: dict[str, Any] | None = None

    def __init__(self, request: InspectRequest, on_image: OnImage = lambda done, total: None) -> None:
        """Load the model or find the golden images, read an earlier report, and learn and calibrate if requested.

        Args:
            on_image: called after each image that is learned from or calibrated with.

        Raises:
            UsageError: options that exclude each other, no threshold, or the report already exists, is that of other
                settings, or is being written by another process.
            BadInputError: images or folders are missing, or an earlier report is damaged.
            WeightsError: there is no model that can inspect.
        """
        _check(request)
        self._request = request
        self.labels = Labels.of(request.images, request.marking) if request.labels else None
        self.known: Labels | None = None
        self.calibration: Calibration | None = None
        self.warnings: list[str] = []
        """A line about each model that is passed over."""
        self.unusable: list[Unreadable] = []
        self.inspected = 0
        if not ranks.is_main():
            self._judge, self.criteria = self._told(ranks.received())
            self.maker = self._judge.name
            return
        with ExitStack() as stack:
            stack.enter_context(files.locked(request.out, wait=request.wait))
            self._report = InspectionReport(request.out, resume=request.resume, overwrite=request.overwrite)
            self._judge, self.criteria = self._settled(on_image)
            self.maker = self._judge.name
            self._report.check(settings_of(self._judge.recorded, self.criteria))
            if request.calibrate is not None and request.reference is None:
                judges.keep(self.maker, request.weights, self.criteria)
            self._arrivals = _Arrivals(request, self._report, self.labels)
            told = self.criteria
            ranks.share(lambda: (self.maker, told.scorer.name, told.threshold, told.border, told.floor))
            self._lock = stack.pop_all()

    def _told(self, settled: tuple[str, str, float, int, float]) -> tuple[Judge, Criteria]:
        """What judges the images, and how, as rank 0 settled it."""
        request, (name, score, threshold, border, floor) = self._request, settled
        judge = (
            judges.model(name, request.weights, request.device)
            if request.reference is None
            else judges.golden(request.reference, _root(request), request.device)
        )
        return judge, Criteria(threshold, judge.scorer(score), border, floor)

    def _settled(self, on_image: OnImage) -> tuple[Judge, Criteria]:
        """What judges the images, and how: as given, as calibrated now or earlier, or by default."""
        request = self._request
        if request.normals is not None:
            learned = judges.learn(_learning(request), on_image)
            self.known, self.unusable, judge = learned.labels, list(learned.unusable), learned.judge
            self.calibration = learned.calibration
        elif request.reference is not None:
            judge = judges.golden(request.reference, _root(request), request.device)
        else:
            judge = judges.model(request.model, request.weights, request.device, self.warnings.append)
        if request.score is not None and request.score not in judge.scores:
            raise UsageError(f"--score {request.score}: {judge.name} can give {' or '.join(judge.scores)}")
        if request.calibrate is not None:
            self.calibration = self._calibrate(judge, request.calibrate, on_image)
            return judge, self.calibration.criteria
        kept = judge.kept
        usual = judge.scores[0]
        if request.threshold is not None and "ssim" in judge.scores:
            usual = "ssim"  # which a threshold without a score has always been one of
        score = request.score or (kept.scorer if kept else usual)
        if kept is not None and kept.scorer != score:
            kept = None  # the threshold is that of another kind of score
        self.calibrated = kept is not None or request.threshold is not None
        scorer = judge.scorer(score)
        threshold = request.threshold if request.threshold is not None else kept.threshold if kept else None
        if threshold is None:
            if request.reference is None or scorer.uncalibrated is None:
                raise UsageError(
                    f"--model {judge.name}: has no threshold for {score} yet; give --calibrate DIR or --threshold"
                )
            threshold = scorer.uncalibrated
        border = request.border if request.border is not None else kept.border if kept else 0
        return judge, Criteria(threshold, scorer, border, kept.floor if kept else 0.0)

    calibrated = True
    """Whether the threshold was calibrated or given, and is not just the default."""

    def _calibrate(self, judge: Judge, folder: Path, on_image: OnImage) -> Calibration:
        """The calibration of the kind of score that suits known defects best; of the default kind if there are none."""
        request = self._request
        self.known = known = Labels.known(folder, request.defects, request.marking)
        kinds = [request.score] if request.score else judge.scores if request.defects else judge.scores[:1]
        bad = {str(path) for path in known.paths if known[path].categories}
        total, done = len(kinds) * len(known.paths), count(1)

        def judged(kind: str) -> Iterator[Finding | Unreadable]:
            self.unusable = []  # the same for each kind
            criteria = Criteria(math.inf, judge.scorer(kind), request.border or 0, borders=BORDERS)
            truth = partial(judges.truth_of, known)
            for each in inspector.inspect(
                known.paths, judge.repair(kind), criteria, workers=request.workers, truth=truth
            ):
                if isinstance(each, Unreadable):
                    self.unusable.append(each)
                on_image(next(done), total)
                yield each

        found = (
            calibrate(judge.scorer(kind), judged(kind), bad, share=request.share, border=request.border)
            for kind in kinds
        )
        return max(found, key=lambda each: each.quality)

    def __len__(self) -> int:
        """The number of images to inspect that are known so far."""
        return max(self.inspected, len(self._arrivals))

    @property
    def defective(self) -> int:
        return self._report.defective

    @property
    def errors(self) -> int:
        return self._report.errors

    @property
    def kept(self) -> int:
        return self._report.kept

    @property
    def totals(self) -> dict[str, int]:
        """The counts so far of the whole report."""
        return {"inspected": len(self._report), "defective": self.defective, "errors": self.errors}

    @property
    def passed_over(self) -> Sequence[Path]:
        """What else is in the folder and may be an image, in the order found: unknown files, and folders."""
        return self._arrivals.others

    def noted(self) -> list[dict[str, Any]]:
        """The records of the whole report that tell of a defect or an error."""
        rows = (row for row in self._report.rows() if row.defective or row.error is not None)
        return [row.model_dump(exclude_unset=True) for row in rows]

    def __iter__(self) -> Iterator[Inspected]:
        if not ranks.is_main():
            for _ in ranks.gathered(map(_light, self._findings(ranks.received()))):
                pass  # it hands them over
            return
        report, arrivals, labels = self._report, self._arrivals, self.labels
        pixels = PixelCounts.none()
        with self._lock:
            report.begin()
            try:
                waiting: Iterable[Path | None] = self._showing(arrivals)
                if ranks.count() > 1:
                    waiting = ranks.share(lambda: list(arrivals))
                for finding in ranks.gathered(self._findings(waiting)):
                    if isinstance(finding, Unreadable) and arrivals.retry_later(finding.path):
                        continue
                    if isinstance(finding, Finding) and finding.pixels is not None:
                        pixels += finding.pixels
                    category = labels[finding.path].category if labels else None
                    row = report.add(finding, arrivals.stamp_of(finding.path), category)
                    self.inspected += 1
                    yield Inspected(finding, row)
            finally:
                if len(report):
                    report.write_table()
                    report.write_page()
            if labels is not None:
                self.figures = self._compared(labels, pixels)
                report.write_figures(self.figures)

    def _findings(self, paths: Iterable[Path | None]) -> Iterator[Finding | Unreadable]:
        """What this rank finds in its share of the images."""
        if ranks.count() > 1:
            paths = ranks.mine(list(paths))
        return inspector.inspect(
            paths, self._judge.repair(self.criteria.scorer.name), self.criteria, workers=self._request.workers,
            truth=self.labels.truth if self.labels else None, pictured=True,
        )  # fmt: skip

    def _compared(self, labels: Labels, pixels: PixelCounts) -> dict[str, Any]:
        """The figures of the images of the whole report, and of pixels if all are of this run."""
        named = {recorded(path.as_posix()): labels[path] for path in labels.paths}
        rows = [row for row in self._report.rows() if row.image in named]
        judged = [
            Judged(named[row.image].categories, row.score, bool(row.defective)) for row in rows if row.score is not None
        ]
        known = labels.masked and not self.kept
        return {
            "score": self.criteria.scorer.name,
            "threshold": round(self.criteria.threshold, 5),
            "border": self.criteria.border,
            "unreadable": len(rows) - len(judged),
            **image_figures(judged),
            "pixels": pixel_figures(pixels) if known else None,
        }

    def _showing(self, arrivals: Iterable[Path | None]) -> Iterator[Path | None]:
        """The arrivals. While they are watched for, the report's page is written now and then."""
        shown, due = self.inspected, time.monotonic() + _REFRESH
        for path in arrivals:
            start = time.monotonic()
            if self._request.watch and self.inspected > shown and start >= due:
                self._report.write_page()
                shown, end = self.inspected, time.monotonic()
                due = end + max(_REFRESH, _REST * (end - start))
            yield path


def inspect(request: InspectRequest) -> InspectionJob:
    """Inspect images: an iterable of findings, each recorded in `OUT/report.jsonl` before it is yielded.

    >>> import defectgen
    >>> from pathlib import Path
    >>> request = defectgen.InspectRequest(images=Path("line"), reference=Path("golden"))
    >>> for inspected in defectgen.inspect(request):
    ...     print(inspected.finding.path.name, inspected.finding.defective)
    0.png False
    1.png True

    With `labels=True`, a job that has ended has `figures`: how well the verdicts agree with a labeled folder.
    A `Finding` has `score`, that of the worst place, 0 to 2; `threshold`; `defective`; and `mask`, bool [H, W].

    Raises:
        UsageError, BadInputError, WeightsError: as `InspectionJob`.
    """
    return InspectionJob(request)


def list_images(folder: Path) -> list[Path]:
    """The images in a folder, also of formats that cannot be read, by name; or the one image if `folder` is a file.

    Raises:
        BadInputError: there are none, or the folder cannot be read.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder")
    paths, _ = _contents(folder)
    if not paths:
        raise BadInputError(f"{folder}: no images in it")
    return paths


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images in a folder, by their suffixes, and what else may be one; without hidden and accompanying files."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise BadInputError(f"{folder}: cannot be read ({error.strerror or error}); try again") from error
    images = [path for path in paths if is_image_file(path) or path.suffix.lower() in _OTHER_IMAGES]
    others = set(paths).difference(images)
    return images, [path for path in paths if path in others and path.suffix.lower() not in _ACCOMPANYING]


def _check(request: InspectRequest) -> None:
    """Raise UsageError for options that exclude each other."""
    given = [name for name in ("reference", "model", "normals") if getattr(request, name) is not None]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} replaces --{given[1]}: give one of them")
    if request.threshold is not None and request.calibrate is not None:
        raise UsageError("--calibrate determines the threshold that --threshold sets: give one of them")
    if request.normals is not None and request.calibrate is not None:
        raise UsageError("--normals calibrates, too: give one of --normals and --calibrate")
    if request.defects is not None and request.normals is None and request.calibrate is None:
        raise UsageError("--defects: give flawless images as well, with --normals or --calibrate")
    if request.name is not None and request.normals is None:
        raise UsageError("--name: names what is learned; give --normals DIR")
    if request.labels and request.watch:
        raise UsageError("--watch never ends, --labels counts when all is inspected: give one of them")
    if request.watch and ranks.count() > 1:
        raise UsageError("--watch: a watched folder is inspected by one process; start it without torchrun")
    if request.marking != MASKS and not (request.labels or request.defects):
        raise UsageError("--annotations, --mask-values and --mask-threshold mark the defects of --labels or --defects")
    if not request.images.exists():
        raise BadInputError(f"{request.images}: no such file or folder")


def _light(finding: Finding | Unreadable) -> Finding | Unreadable:
    """A finding to hand over to rank 0, without the pixels of a flawless image, of which it draws nothing."""
    if isinstance(finding, Unreadable) or finding.defective:
        return finding
    return replace(finding, photograph=DecodedImage(finding.photograph.pixels[:0, :0]))


def _learning(request: InspectRequest) -> judges.LearnRequest:
    assert request.normals is not None
    return judges.LearnRequest(
        normals=request.normals, defects=request.defects, marking=request.marking, name=request.name,
        weights=request.weights, share=request.share, border=request.border, score=request.score,
        device=request.device, workers=request.workers,
    )  # fmt: skip


def _root(request: InspectRequest) -> Path | None:
    """The folder below which images have golden images at the same places."""
    return request.images if request.labels else None


class _Arrivals:
    """The images of a folder that are not yet done; with `watch` also new ones, with None while there are none.

    An image is done if the report has a verdict on it, and neither it nor its golden image has changed since. A new or
    changed image is yielded once its size and time stay the same between two polls. An image that is unreadable because
    it is still being written is yielded again, and so is one that changes after its verdict.
    """

    def __init__(self, request: InspectRequest, report: InspectionReport, labels: Labels | None) -> None:
        self._request, self._report, self._labels = request, report, labels
        self._taken: dict[Path, _Stamp] = {}
        self._seen: dict[Path, tuple[_Stamp, float]] = {}  # each new image's stamp, and when it was first so
        self.others: list[Path] = []
        self._others: dict[Path, float] = {}  # when each file that is no image was first there
        listed = [] if request.watch else labels.paths if labels else list_images(request.images)
        self._paths = [path for path in listed if self._due(path)]
        if not request.watch and labels is None and request.images.is_dir():
            self._note(_contents(request.images)[1], math.inf)

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Path | None]:
        for path in self._paths:
            self._taken[path] = self._stamps(path)
            yield path
        while self._request.watch:
            start = time.monotonic()
            steady = self._steady(start)
            pause = max(_POLL, time.monotonic() - start)  # a slow drive is not asked all the time
            for path in steady:
                self._taken[path] = self._stamps(path)
                yield path
            yield None
            time.sleep(pause)

    def _steady(self, now: float) -> list[Path]:
        """The images to take: those that did not change since the last poll, nor since a while if they are empty."""
        images, others = _contents(self._request.images)
        self._note(others, now - _PATIENCE)
        found = []
        for path in images:
            if not self._due(path):
                continue
            stamp = _stamp(path)
            before, since = self._seen.get(path, (None, now))
            if stamp != before:
                self._seen[path] = stamp, now
            elif stamp[0] or now - since > _PATIENCE:
                found.append(path)
        return found

    def _due(self, path: Path) -> bool:
        category = self._labels[path].category if self._labels else None
        if path not in self._taken and (judged := self._report.stamp_of(path, category)):
            stamps = self._stamps(path)
            if judged == _text(stamps):
                self._taken[path] = stamps
        return self._taken.get(path, ())[:2] != _stamp(path)

    def _stamps(self, path: Path) -> "_Stamp":
        reference = self._request.reference
        if reference is None:
            return _stamp(path)
        return _stamp(path) + _stamp(inspector.golden_path(reference, path, _root(self._request)))

    def _note(self, others: list[Path], before: float) -> None:
        """Add to `others` the files that have been there since `before`: an image may first have a temporary name."""
        now, out = time.monotonic(), self._request.out.absolute()
        self._others = {path: self._others.get(path, now) for path in others if path.absolute() != out}
        known = set(self.others)
        self.others += [path for path, since in self._others.items() if since < before and path not in known]

    def stamp_of(self, path: Path) -> str:
        """The stamp of an image when it was taken, as the report keeps it."""
        return _text(self._taken[path])

    def retry_later(self, path: Path) -> bool:
        """Whether an unreadable image changed recently, so that it may be incomplete and is to be yielded again."""
        if not self._request.watch:
            return False
        stamp, since = self._seen[path]
        recent = stamp != _stamp(path) or time.monotonic() - since < _PATIENCE
        if recent:
            del self._taken[path]
        return recent


_Stamp = tuple[int, ...]
"""Size and time in nanoseconds of a file, 0 if it is missing; and those of its golden image, if there are any."""


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:  # removed in the meantime
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _text(stamp: _Stamp) -> str:
    return " ".join(map(str, stamp))
