"""The loop that generates samples, lazily and in order: draw, generate, finish; retry if no defect is visible.

(seed, k) alone determines sample k: its category, source image, position and latent code. So it is the same for any
number of samples, workers, ranks or interruptions, and on the CPU for any batch size.
"""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files, ranks
from defectgen.dataset import Normal, Sample, packed
from defectgen.dataset.manifest import Reference
from defectgen.errors import UsageError
from defectgen.folders import Catalog, SourceImage
from defectgen.imaging import masks
from defectgen.imaging.compression import compressed_as, compression_of
from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.windows import FloatArray, ImageCache, value_range
from defectgen.methods import Control, MethodInfo, having
from defectgen.synthesis.split import Photographs, Split, said


@dataclass(frozen=True)
class Attempt:
    """One attempt at a sample."""

    index: int
    attempt: int
    category: str


@dataclass(frozen=True)
class Draw(Attempt):
    """An attempt with a randomly chosen source image."""

    sample: SourceImage
    photograph: DecodedImage


D = TypeVar("D", bound=Attempt)
G = TypeVar("G")

_HELD = 2**28  # bytes of images that are in the making at a time, or a single one
_CORE = 0.25  # of a defect is to be visible: masks of real ones may be generous


@dataclass(frozen=True)
class Judgement:
    """What a gate finds of a sample. `reason` says why it is rejected; None if it passes."""

    reason: str | None
    distance: float | None = None
    """To the nearest real defect, as `Provenance.distance`; None if nothing can be said of it."""
    nearest: Reference | None = None


class Gatekeeper(Protocol):
    """Judges a sample, given its source image."""

    name: str
    photographs: Sequence[str]
    """The SHA-256 of the images that it compares with."""

    def __call__(self, sample: Sample, source: Pixels | None) -> Judgement: ...


@dataclass(frozen=True)
class SampleSpec:
    """What to generate: samples 0 to num - 1, with the categories in turn, others for those that were `rejected`.

    Samples in `skip` are there already; those that `gate` rejects are regenerated.
    """

    categories: tuple[str, ...]
    num: int
    normals: Catalog
    seed: int = 0
    workers: int = 2
    skip: frozenset[int] = field(default=frozenset())
    rejected: frozenset[int] = field(default=frozenset())
    gate: Gatekeeper | None = None
    split: Split | None = None
    """None: samples are not divided into training and validation."""

    def category(self, index: int) -> str:
        """The category of a sample."""
        return self.categories[index % len(self.categories)]

    def validates(self, index: int) -> bool:
        """Whether a sample is for validation: that follows from its number in its category."""
        return self.split is not None and self.split.holds_out(index // len(self.categories))

    @property
    def indices(self) -> list[int]:
        """The indices to generate. For a rejected one comes one from `num` on, of the same category and side."""

        def kind(index: int) -> tuple[str, bool]:
            return self.category(index), self.validates(index)

        wanted = [index for index in range(self.num) if index not in self.rejected]
        missing = Counter(kind(index) for index in self.rejected if index < self.num)
        index = self.num
        while missing.total():
            if index not in self.rejected and missing[kind(index)]:
                missing[kind(index)] -= 1
                wanted.append(index)
            index += 1
        return [index for index in wanted if index not in self.skip]


@dataclass(frozen=True)
class _Made:
    """A sample of one rank; None if it failed. `redrawn` counts the attempts at samples since the one before it."""

    index: int
    sample: Sample | None
    redrawn: int
    refused: list[str]


class SampleStream(ABC, Generic[D, G]):
    """An iterable of samples in the order of their indices. Its counters are final once it is exhausted."""

    attempts: ClassVar[int] = 10
    """Attempts at a sample without a visible, accepted defect, after which it counts as failed."""

    def __init__(self, wanted: SampleSpec, batch_size: int) -> None:
        self._wanted, self._indices = wanted, wanted.indices
        sizes = (each.height * each.width * each.channels * each.depth // 8 for each in wanted.normals.images)
        largest = max(sizes, default=1)
        self._batch_size = max(1, min(batch_size, _HELD // largest))
        self._images = ImageCache()
        self._sha256 = cache(files.sha256)
        self._compression = cache(compression_of)
        self.redrawn = 0
        self.failed: list[int] = []
        self.metadata: dict[str, Any] = {}
        """Facts about all samples, for `dataset.json`."""
        if wanted.gate is not None:
            self.metadata["gated_by"] = list(wanted.gate.photographs)
        self.warnings: list[str] = []
        self._sources = self._divide(wanted.normals.images, "normals", lambda image: image.product)
        self.refused: Counter[str] = Counter()
        self._refused: dict[int, list[str]] = {}

    @abstractmethod
    def _draw(self, index: int, attempt: int) -> D:
        """Make all random choices of an attempt. Runs in a worker thread."""

    @abstractmethod
    def _generate(self, draws: Sequence[D]) -> Sequence[G]:
        """Run the network on a batch of draws, while the workers draw the next one."""

    @abstractmethod
    def _finish(self, draw: D, generated: G) -> Sample | None:
        """The sample, or None if its defect is not visible. Runs in a worker thread."""

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Sample]:
        return self._made(self._indices, self._checked)

    def of_ranks(self) -> Iterator[Sample]:
        """The samples in the order of their indices, each made by one of the ranks. Only rank 0 gets them.

        Those of other ranks are `packed`. The counters of rank 0 include theirs.
        """
        if ranks.count() == 1:
            yield from self
            return
        for position, made in enumerate(ranks.gathered(self._handed_over(ranks.mine(self._indices)))):
            if position % ranks.count() != ranks.index():
                self.redrawn += made.redrawn
                self._refused[made.index] = made.refused
                if made.sample is None:
                    self.failed.append(made.index)
            if made.sample is not None:
                yield made.sample
        self._count_refused()

    def _handed_over(self, indices: Sequence[int]) -> Iterator["_Made"]:
        """The samples of these indices, also those that failed, as rank 0 takes them from this rank."""

        def finish(draw: D, generated: G) -> Sample | None:
            sample = self._checked(draw, generated)
            return sample if sample is None or ranks.is_main() else packed(sample)

        redrawn, left = 0, iter(indices)

        def said(index: int, sample: Sample | None) -> "_Made":
            nonlocal redrawn
            since, redrawn = self.redrawn - redrawn, self.redrawn
            return _Made(index, sample, since, self._refused.get(index, []))

        for sample in self._made(indices, finish):
            while (index := next(left)) != sample.index:
                yield said(index, None)
            yield said(index, sample)
        for index in left:
            yield said(index, None)

    def _made(self, indices: Sequence[int], finish: Callable[[D, G], Sample | None]) -> Iterator[Sample]:
        """The samples of these indices, in this order. `finish` makes a sample, or None, of a draw."""
        pending = iter(indices)
        retries: deque[tuple[int, int]] = deque()
        order: deque[int] = deque()
        finished: dict[int, Sample | None] = {}
        with ThreadPoolExecutor(max(1, self._wanted.workers), thread_name_prefix="samples") as pool:

            def take() -> list[Future[D]]:
                repeated = [retries.popleft() for _ in range(min(len(retries), self._batch_size))]
                fresh = list(islice(pending, self._batch_size - len(repeated)))
                order.extend(fresh)
                return [pool.submit(self._draw, *key) for key in [*repeated, *((index, 0) for index in fresh)]]

            upcoming = take()
            while upcoming:
                draws = [future.result() for future in upcoming]
                upcoming = take()  # drawn while the network processes the current ones
                results = list(pool.map(finish, draws, self._generate(draws)))
                self._count_refused()
                for draw, result in zip(draws, results, strict=True):
                    if result is None and draw.attempt + 1 < self.attempts:
                        self.redrawn += 1
                        retries.append((draw.index, draw.attempt + 1))
                    else:
                        finished[draw.index] = result
                while order and order[0] in finished:
                    index = order.popleft()
                    result = finished.pop(index)
                    if result is None:
                        self.failed.append(index)
                    else:
                        yield result
                upcoming = upcoming or take()

    def _count_refused(self) -> None:
        self.refused = Counter(reason for reasons in self._refused.values() for reason in reasons)

    def _checked(self, draw: D, generated: G) -> Sample | None:
        """The sample of `_finish`, compressed as its normal is, if the gate accepts it, else None.

        The provenance of an accepted sample says how near it is to which real defect, and why earlier attempts were
        rejected.
        """
        sample, gate = self._finish(draw, generated), self._wanted.gate
        if sample is not None and isinstance(draw, Draw) and (of := self._compression(draw.sample.path)) is not None:
            before = draw.photograph.pixels
            sample = replace(
                sample,
                image=compressed_as(of, before, sample.image),
                restored=sample.restored if sample.restored is None else compressed_as(of, before, sample.restored),
            )
        if sample is not None and self._wanted.split is not None:
            sample = replace(sample, validates=self._validates(draw.index))
        if sample is None or gate is None:
            return sample
        refused = self._refused.setdefault(draw.index, [])
        found = gate(sample, draw.photograph.pixels if isinstance(draw, Draw) else sample.normal)
        if found.reason is None:
            verdict: dict[str, Any] = {"gate": gate.name, "refused": tuple(refused)}
            verdict |= {} if found.distance is None else {"distance": round(found.distance, 4)}
            verdict |= {} if found.nearest is None else {"nearest": found.nearest}
            return replace(sample, provenance=sample.provenance.model_copy(update=verdict))
        refused.append(found.reason)
        return None

    def normals(self) -> list[Normal]:
        """The normals, by side: detectors need them in addition to the samples."""
        train, val = set(self._sources(False)), set(self._sources(True))
        return [
            Normal(image.product, image in val - train, partial(self._read, image.path))
            for image in self._wanted.normals.images
        ]

    def _read(self, path: Path) -> Pixels:
        return self._images.read(path).pixels

    def _divide(
        self, images: Sequence[SourceImage], what: str, group: Callable[[SourceImage], str]
    ) -> Callable[[bool], Sequence[SourceImage]]:
        """The images of which samples for validation, or those for training, are made. `group` as in `Photographs`."""
        split = self._wanted.split
        if split is None or not images or (split.only_normals and what != "normals"):
            return lambda _: images
        divided = Photographs(images, split, group, self._sha256)
        if divided.shared:
            self.warnings.append(said(what, divided.shared))
        return divided.of

    def _defects(self, catalog: Catalog) -> Callable[[int, str], Sequence[SourceImage]]:
        """The real defects of a category of which a sample, by its index, may be made."""
        wanted = [image for image in catalog.images if image.category in self._wanted.categories]
        of = self._divide(wanted, "defects", lambda image: image.category)
        known = cache(lambda validates, category: [each for each in of(validates) if each.category == category])
        return lambda index, category: known(self._validates(index), category)

    def _validates(self, index: int) -> bool:
        """Whether a sample is for validation."""
        return self._wanted.validates(index)

    def _category(self, index: int) -> str:
        return self._wanted.category(index)

    def _draw_source(self, rng: np.random.Generator, index: int, attempt: int) -> Draw:
        samples = self._sources(self._validates(index))
        sample = samples[int(rng.integers(len(samples)))]
        return Draw(index, attempt, self._category(index), sample, self._images.read(sample.path))

    def _source_provenance(self, draw: Draw) -> dict[str, object]:
        """The source image, for a manifest row."""
        return {"source": str(draw.sample.path), "source_sha256": self._sha256(draw.sample.path)}


AnyStream = SampleStream[Any, Any]


_REFUSALS: dict[Control, str] = {
    "region": "cannot place defects in a region (--region); {} can",
    "mask": "cannot place defects in a mask (--region FILE); {} can",
    "mixture": "cannot mix categories; {} can",
    "union": "cannot make unions of categories; {} can",
    "reference": "cannot take defects from reference images (--from, --like); {} can",
    "style": "cannot apply a style (--style); {} can",
    "object": "makes no whole images (--same-object, --truncation); {} does",
}


def require(control: Control, row: MethodInfo, who: str) -> None:
    """Check that a method supports a control.

    Raises:
        UsageError: it does not. The message starts with `who` and lists the methods that do.
    """
    if control not in row.controls:
        raise UsageError(f"{who} {_REFUSALS[control].format(having(control))}")


def visible(photograph: DecodedImage, after: Pixels, mask: NDArray[np.bool_]) -> bool:
    """Whether a defect is visible: `masks.SMALLEST` pixels or more, a quarter of which change by 10 of 255 gray levels.

    A defect that covers the whole image is not visible, because nothing is left to compare it with.
    """
    if mask.sum() < masks.SMALLEST or mask.all():
        return False
    change = _strength(photograph, after[mask].astype(np.float32) - photograph.pixels[mask])
    return bool(np.quantile(change, 1 - _CORE) > masks.VISIBLE)


def visible_pieces(photograph: DecodedImage, after: Pixels, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask without the pieces of which less than a quarter is visible: labels of what nobody sees do harm.

    Changes are averaged over 3 x 3 pixels: another grain is not seen.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        return mask
    there = slice(top, top + height), slice(left, left + width)
    own = mask[there]
    change = cv2.blur(after[there].astype(np.float32) - photograph.pixels[there], (3, 3))
    seen = _strength(photograph, np.asarray(change, np.float32)) > masks.VISIBLE
    count, labels = cv2.connectedComponents(own.astype(np.uint8), connectivity=8)
    kept = np.bincount(labels[own & seen], minlength=count) > _CORE * np.bincount(labels[own], minlength=count)
    found = np.zeros_like(mask)
    found[there] = kept[labels] & own
    return found


def _strength(photograph: DecodedImage, change: FloatArray) -> FloatArray:
    """A change of some of a photograph's pixels, that of their strongest channel, over the range of values."""
    low, high = value_range(photograph)
    strongest = np.abs(change).max(axis=-1) if photograph.pixels.ndim == 3 else np.abs(change)
    return np.asarray(strongest / (high - low), np.float32)


def mixture(text: str, known: Collection[str] = ()) -> dict[str, float]:
    """The categories in a text with their weights.

    The text is a category, `crack`; a union, `crack+hole`, with weight 1 for each; or a mixture,
    `crack:0.3,hole:0.7`, whose weights are normalized to a sum of 1. The names of `known` categories may have these
    signs themselves.

    Raises:
        UsageError: a weight that is not a number above 0.
    """
    names = _split(text, "+", lambda part: part in known)
    if ":" not in text or set(names) <= set(known):
        return dict.fromkeys(names, 1.0)
    weights: dict[str, float] = {}
    for part in _split(text, ",", lambda part: part.rpartition(":")[0].strip() in known):
        name, _, weight = part.rpartition(":")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            weights[name.strip()] = 0.0
    if "" in weights or not all(0 < weight < float("inf") for weight in weights.values()):
        raise UsageError(f"--category {text}: give a name, or names with weights above 0, such as crack:0.3,hole:0.7")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _split(text: str, separator: str, is_known: Callable[[str], bool]) -> list[str]:
    """Split a text, but not within the longest parts that are known."""
    pieces, parts = text.split(separator), list[str]()
    while pieces:
        joined = (separator.join(pieces[:count]) for count in range(len(pieces), 1, -1))
        parts.append(next(filter(is_known, joined), pieces[0]))
        del pieces[: parts[-1].count(separator) + 1]
    return parts


def mixture_name(weights: Mapping[str, float]) -> str:
    """The category name of a mixture's samples, `crack0.3+hole0.7`, or of a union's, `crack+hole`."""
    return "+".join(name if w == 1 else f"{name}{w:.3g}" for name, w in weights.items())
