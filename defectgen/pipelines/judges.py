"""What judges images: golden images, a model that repairs them, or what was learned from flawless ones and defects."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defectgen import files
from defectgen.errors import BadInputError, UsageError, WeightsError
from defectgen.finding import named_after
from defectgen.imaging.images import DecodedImage, ImageError
from defectgen.imaging.mask_files import digests
from defectgen.imaging.windows import BoolArray
from defectgen.inspection import inspector
from defectgen.inspection.calibration import BORDERS, Calibration, calibrate
from defectgen.inspection.inspector import Criteria, Finding, Repair, Unreadable
from defectgen.inspection.labels import Labels
from defectgen.inspection.scores import COMPARING, DIFFERENCE, SSIM, Scorer
from defectgen.inspection.simulation import simulated
from defectgen.marking import MASKS, Marking
from defectgen.methods import which
from defectgen.models import registry
from defectgen.models.registry import MEMORY_BANK
from defectgen.text import slug

if TYPE_CHECKING:
    from torch import Tensor

    from defectgen.inspection.features import Lesson
    from defectgen.models.model import SavedCriteria

_FOLDS = 3
_LEAST_DEFECTS = 4  # with masks, for a classifier of them
_SIMULATED = 2  # images with simulated defects made of each flawless one
_LEAST = 4  # flawless images: some to learn from, some to calibrate with

OnImage = Callable[[int, int], None]
"""Called with the number of images done and their total."""


@dataclass(frozen=True)
class Judge:
    """What images are judged by. `score` is a kind of score map (`COMPARING` or `LEARNED`)."""

    name: str
    recorded: str
    """The name for the records, which changes whenever a model does."""
    scores: Sequence[str]
    """The kinds that it can give, the default first."""
    scorer: Callable[[str], Scorer]
    repair: Callable[[str], Repair | None]
    """The `Repair` for a kind."""
    kept: "SavedCriteria | None" = None
    """What an earlier calibration found."""


# --- Golden images ----------------------------------------------------------------------------------------------


def golden(folder: Path, root: Path | None, device: str) -> Judge:
    """Golden images. Their place and light is that of each image, unless the score is `ssim`, as published."""
    if not folder.is_dir():
        raise BadInputError(f"--reference {folder}: no such folder")
    return Judge(
        name=str(folder),
        recorded=str(folder),
        scores=("difference", "ssim", "features"),
        scorer=partial(_comparing, device),
        repair=lambda score: inspector.golden(folder, root, align=score != "ssim"),
    )


def _comparing(device: str, score: str) -> Scorer:
    if score == "features":
        from defectgen.device import resolve  # golden images need no PyTorch otherwise
        from defectgen.inspection.features import FeatureDifference
        from defectgen.nn.features import lite0

        return FeatureDifference(lite0(resolve(device)))
    return {"ssim": SSIM, "difference": DIFFERENCE}[score]


# --- Models -----------------------------------------------------------------------------------------------------


def model(name: str | None, weights: Path | None, device: str, warn: Callable[[str], object] = lambda _: None) -> Judge:
    """A model of `weights.toml`: one that repairs images, or a memory bank. None is the newest of one's own.

    A model that ships knows other parts, so it judges only where it is named.

    Args:
        warn: called with a line about each model that is passed over.

    Raises:
        WeightsError: there is none, or its file is missing or damaged.
    """
    methods = (*which(lambda row: row.repairs), MEMORY_BANK)
    lists = registry.find_registry(weights, shipped=name is not None)
    entry = registry.find(name=name, files=lists, methods=methods, warn=warn)
    registry.verify(entry)
    recorded = f"model {entry.name} of {entry.created}"
    if entry.method == MEMORY_BANK:
        return replace(load(entry.file, device), name=entry.name, recorded=recorded)
    from defectgen.inspection.reconstruction import NetworkRepair

    repair = NetworkRepair(entry.file, device)
    return Judge(entry.name, recorded, COMPARING, partial(_comparing, device), lambda _: repair, repair.criteria)


def keep(name: str, weights: Path | None, criteria: Criteria) -> None:
    """Write criteria into a model's file, and its new SHA-256 into the list of models."""
    from defectgen.models.model import keep_criteria

    for file in registry.find_registry(weights):
        with registry.changing(file):
            entry = next((each for each in registry.read(file) if each.name == name), None)
            if entry is not None:
                keep_criteria(entry.file, saved(criteria))
                registry.add(entry.model_copy(update={"sha256": files.sha256(entry.file)}), file)
                return


# --- Memory banks -----------------------------------------------------------------------------------------------


def load(file: Path, device: str) -> Judge:
    """The memory bank in a file.

    Raises:
        WeightsError: the file is missing, damaged, or something else.
    """
    from defectgen.device import resolve
    from defectgen.inspection.features import Memory
    from defectgen.models import checkpoint
    from defectgen.models.model import criteria_of
    from defectgen.nn.features import lite0

    tensors, record = checkpoint.load(file, "method", "threshold", "scorer")
    try:
        if record["method"] != MEMORY_BANK:
            raise ValueError(f"a model of {record['method']}")
        criteria = criteria_of(record)
        assert criteria is not None
        scorer = Memory(lite0(resolve(device)), tensors, criteria.scorer)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(f"{file}: not a memory bank of this version; learn it again: {error}") from error
    return Judge(file.parent.name, file.parent.name, (scorer.name,), lambda _: scorer, lambda _: None, criteria)


def entry_fields(name: str, categories: Sequence[str]) -> dict[str, Any]:
    """What the list of models says of a memory bank because it is one: it takes images of any size and channels."""
    return {
        "method": MEMORY_BANK, "categories": tuple(categories), "products": (name,), "image_size": 1, "channels": 1,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LearnRequest:
    """What to learn from: flawless images, and known defects with masks if there are any."""

    normals: Path
    defects: Path | None = None
    marking: Marking = MASKS
    name: str | None = None
    """None means that of the normals' folder, or of the one around it."""
    out: Path = Path("runs")
    weights: Path | None = None
    share: float | None = None
    border: int | None = None
    score: str | None = None
    device: str = "auto"
    workers: int = 2


@dataclass(frozen=True)
class Learned:
    """A memory bank, ready to judge. `calibration` is None if it had been learned before, from the same files."""

    judge: Judge
    labels: Labels
    calibration: Calibration | None
    unusable: Sequence[Unreadable]


def learn(request: LearnRequest, on_image: OnImage = lambda done, total: None) -> Learned:
    """Learn from images, calibrate by cross-validation, and enter the memory bank in `weights.toml`.

    Defects with masks are learned from, and simulated ones; which of the two tells the known defects better is kept.

    Raises:
        BadInputError: folders or images cannot be used.
        UsageError: the name is that of another model, or is no name.
    """
    from defectgen.models import checkpoint

    labels = Labels.known(request.normals, request.defects, request.marking)
    name = request.name or slug(named_after(request.normals))
    if name != slug(name):
        raise UsageError(f"--name {name}: use letters, digits, '-', '_' and '.', such as {slug(name)}")
    file, listed = request.out / name / registry.MODEL, registry.find_writable(request.weights)
    registry.check_name(name, file, listed)
    settings = {"share": request.share, "border": request.border, "score": request.score}
    task = {"categories": list(labels.categories)}
    identity = {
        "method": MEMORY_BANK, "config": settings, "task": task, "trained_on": sorted(set(_digests(labels)))
    }  # fmt: skip
    if file.is_file() and _is_of(file, identity):
        return Learned(model(name, listed, request.device), labels, None, ())
    learning = _Learning(request, labels, on_image)
    calibration, tensors = learning.calibrated()
    with files.locked(file.parent):
        checkpoint.save(file, tensors, {**identity, **saved(calibration.criteria).model_dump()})
        entry = registry.Entry(
            name=name,
            file=file.absolute(),
            sha256=files.sha256(file),
            created=datetime.now(timezone.utc).replace(microsecond=0),
            trained_on={name: request.normals.absolute()},
            **entry_fields(name, labels.categories),
        )
        registry.add(entry, listed)
    return Learned(model(name, listed, request.device), labels, calibration, learning.unusable)


class _Learning:
    """Reads each image once to learn from it, and once for each kind of score to calibrate by it."""

    def __init__(self, request: LearnRequest, labels: Labels, on_image: OnImage) -> None:
        from defectgen.device import resolve
        from defectgen.nn.features import lite0

        self._request, self._labels, self._on_image, self._done = request, labels, on_image, 0
        self._network = lite0(resolve(request.device))
        self._truth = partial(truth_of, labels)
        self._kinds = self._suited(labels.paths)
        self._lessons: dict[Path, list[Lesson]] = {}
        self.unusable: list[Unreadable] = []
        for seed, path in enumerate(labels.paths):
            if not labels[path].categories or labels[path].masks:
                taken = inspector.attempt(path, partial(self._taught, path, seed))
                if isinstance(taken, Unreadable):
                    self.unusable.append(taken)
                else:
                    self._lessons[path] = taken
            self._step()
        normals = sum(not labels[path].categories for path in self._lessons)
        if normals < _LEAST:
            raise BadInputError(f"{request.normals}: {normals} usable images; give {_LEAST} or more without defects")
        self._kinds = self._suited(self._lessons)
        if "simulated" in self._kinds and not any(
            len(each.defective) for of in self._lessons.values() for each in of[1:]
        ):
            raise BadInputError(f"{request.normals}: its images are too small to learn from; give larger ones")
        # Defects without masks are not learned from, but calibrate.
        unusable = {each.path for each in self.unusable}
        self._paths = [path for path in labels.paths if path not in unusable]
        self._folds = _folds(self._paths, labels)

    def _suited(self, paths: Iterable[Path]) -> Sequence[str]:
        """The kinds of score to try if these images can be used."""
        masked = sum(bool(self._labels[path].masks) for path in paths)
        kinds = ("simulated", "classifier") if masked >= _LEAST_DEFECTS else ("simulated",)
        if self._request.score is None:
            return kinds
        if self._request.score not in (*kinds, "memory"):
            raise UsageError(
                f"--score {self._request.score}: it learns from defects with masks; give {_LEAST_DEFECTS} or more with "
                "--defects"
            )
        return (self._request.score,)

    def _taught(self, path: Path, seed: int, photograph: DecodedImage) -> "list[Lesson]":
        """What is to be learned from an image; from a flawless one also with simulated defects."""
        from defectgen.inspection.features import Lesson, most_patches

        most = most_patches((1 + _SIMULATED) * len(self._labels.paths))
        lessons = [Lesson(self._network, photograph, self._truth(path, photograph), most, seed)]
        if not self._labels[path].categories and "simulated" in self._kinds:
            rng = np.random.default_rng(seed)
            lessons += [Lesson(self._network, *simulated(photograph, rng), most, seed) for _ in range(_SIMULATED)]
        return lessons

    def _learned(self, kind: str, paths: Iterable[Path]) -> "Mapping[str, Tensor]":
        """What is learned from these images."""
        from defectgen.inspection.features import learn

        known = [path for path in paths if path in self._lessons]
        if kind == "simulated":
            known = [path for path in known if not self._labels[path].categories]
            return learn([lesson for path in known for lesson in self._lessons[path]], kind, 0)
        return learn([self._lessons[path][0] for path in known], kind, 0)

    def _step(self) -> None:
        self._done += 1
        self._on_image(self._done, (1 + len(self._kinds)) * len(self._labels.paths))

    def calibrated(self) -> tuple[Calibration, "Mapping[str, Tensor]"]:
        """The calibration of the better kind, and what it learned from all images."""
        bad = {str(path) for path in self._paths if self._labels[path].categories}
        share, border = self._request.share, self._request.border
        best, whole = None, None
        for kind in self._kinds:
            tensors = self._learned(kind, self._paths)
            found = calibrate(self._memory(kind, tensors), self._judged(kind), bad, share=share, border=border)
            if best is None or found.quality > best.quality:
                best, whole = found, tensors
        assert best is not None
        assert whole is not None
        return best, whole

    def _memory(self, kind: str, tensors: "Mapping[str, Tensor]") -> Scorer:
        from defectgen.inspection.features import Memory

        return Memory(self._network, tensors, kind)

    def _judged(self, kind: str) -> Iterator[Finding | Unreadable]:
        """What is said of each image by what was learned from others."""
        for fold in range(_FOLDS):
            tensors = self._learned(kind, [path for path in self._paths if self._folds[path] != fold])
            criteria = Criteria(math.inf, self._memory(kind, tensors), self._request.border or 0, borders=BORDERS)
            held = [path for path in self._paths if self._folds[path] == fold]
            for finding in inspector.inspect(held, None, criteria, workers=self._request.workers, truth=self._truth):
                yield finding
                self._step()


def _folds(paths: Sequence[Path], labels: Labels) -> dict[Path, int]:
    """The fold of each image: each has a part of every category."""
    ordered = sorted(paths, key=lambda path: labels[path].category)
    return {path: i % _FOLDS for i, path in enumerate(ordered)}


def truth_of(labels: Labels, path: Path, photograph: DecodedImage) -> BoolArray | None:
    """The true mask of an image, which is empty for flawless ones; None if it is not known."""
    if not labels[path].categories:
        return np.zeros((photograph.height, photograph.width), np.bool_)
    return labels.truth(path, photograph)


def _digests(labels: Labels) -> Iterator[str]:
    """The SHA-256 of each image and mask that can be read."""
    for path in labels.paths:
        with suppress(OSError, ImageError):
            yield files.sha256(path)
            for mask in labels[path].masks or ():
                yield from digests(mask)


def _is_of(file: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a file is that of a memory bank that was learned from the same images with the same settings."""
    from defectgen.models import checkpoint

    try:
        _, record = checkpoint.load(file, *identity)
    except WeightsError:
        return False
    return all(record[key] == value for key, value in identity.items())


def saved(criteria: Criteria) -> "SavedCriteria":
    """As a model keeps them."""
    from defectgen.models.model import SavedCriteria

    threshold, floor, scorer = criteria.threshold, criteria.floor, criteria.scorer.name
    return SavedCriteria(threshold=threshold, border=criteria.border, scorer=scorer, floor=floor)
