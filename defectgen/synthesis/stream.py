"""The loop that makes samples: draw, generate, finish; again if nothing can be seen; in order, and lazily.

SourceImage k is decided by (seed, k) alone: its category, photograph, place, latent code. So it is the same picture
whatever the number of samples, workers or interruptions; on the CPU also for any batch size.
"""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import Sample
from defectgen.errors import UsageError
from defectgen.folders import Catalog, SourceImage
from defectgen.imaging import masks
from defectgen.imaging.images import DecodedImage, Pixels
from defectgen.imaging.windows import ImageCache, value_range
from defectgen.methods import Control, MethodInfo, having

_ATTEMPTS = 10


@dataclass(frozen=True)
class Attempt:
    """One attempt at a sample."""

    index: int
    attempt: int
    category: str


@dataclass(frozen=True)
class Draw(Attempt):
    """One on a photograph that was drawn for it."""

    sample: SourceImage
    photograph: DecodedImage


D = TypeVar("D", bound=Attempt)
G = TypeVar("G")


class Gatekeeper(Protocol):
    """Tells of a sample, and the photograph that it was made on, why it should be made anew, if it should."""

    name: str
    photographs: Sequence[str]
    """The SHA-256 of what it compares with."""

    def __call__(self, sample: Sample, source: Pixels | None) -> str | None: ...


@dataclass(frozen=True)
class SampleSpec:
    """What to make: samples 0 to num - 1, their categories in turn, without those in `skip`; those that pass a gate."""

    categories: tuple[str, ...]
    num: int
    normals: Catalog
    seed: int = 0
    workers: int = 2
    skip: frozenset[int] = field(default=frozenset())
    gate: Gatekeeper | None = None


class SampleStream(ABC, Generic[D, G]):
    """An iterable of samples in the order of their indices; its counters are right when it has been read."""

    def __init__(self, wanted: SampleSpec, batch_size: int) -> None:
        self._wanted = wanted
        self._batch_size = batch_size
        self._photographs = ImageCache()
        self._sha256 = cache(files.sha256)
        self.redrawn = 0
        self.failed: list[int] = []
        self.metadata: dict[str, Any] = {}
        """What the dataset's record tells of them all."""
        if wanted.gate is not None:
            self.metadata["gated_by"] = list(wanted.gate.photographs)
        self.refused: Counter[str] = Counter()
        self._refused: dict[int, list[str]] = {}

    @abstractmethod
    def _draw(self, index: int, attempt: int) -> D:
        """All chance of an attempt; in a worker's thread."""

    @abstractmethod
    def _generate(self, draws: Sequence[D]) -> Sequence[G]:
        """What a network makes of the draws, while the workers draw the next ones."""

    @abstractmethod
    def _finish(self, draw: D, generated: G) -> Sample | None:
        """The sample, or None if nothing of it can be seen; in a worker's thread."""

    def __len__(self) -> int:
        return self._wanted.num - sum(index < self._wanted.num for index in self._wanted.skip)

    def __iter__(self) -> Iterator[Sample]:
        coming = (index for index in range(self._wanted.num) if index not in self._wanted.skip)
        again: deque[tuple[int, int]] = deque()
        order: deque[int] = deque()
        finished: dict[int, Sample | None] = {}
        with ThreadPoolExecutor(max(1, self._wanted.workers), thread_name_prefix="samples") as pool:

            def take() -> list[Future[D]]:
                retries = [again.popleft() for _ in range(min(len(again), self._batch_size))]
                fresh = list(islice(coming, self._batch_size - len(retries)))
                order.extend(fresh)
                return [pool.submit(self._draw, *key) for key in [*retries, *((index, 0) for index in fresh)]]

            upcoming = take()
            while upcoming:
                draws = [future.result() for future in upcoming]
                upcoming = take()  # drawn while the network works on these
                results = list(pool.map(self._checked, draws, self._generate(draws)))
                self.refused = Counter(each for its in self._refused.values() for each in its)
                for draw, result in zip(draws, results, strict=True):
                    if result is None and draw.attempt + 1 < _ATTEMPTS:
                        self.redrawn += 1
                        again.append((draw.index, draw.attempt + 1))
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

    def _checked(self, draw: D, generated: G) -> Sample | None:
        """What `_finish` gives, if the gate lets it pass; the record of what takes its place tells why not."""
        sample, gate = self._finish(draw, generated), self._wanted.gate
        if sample is None or gate is None:
            return sample
        refused = self._refused.setdefault(draw.index, [])
        reason = gate(sample, draw.photograph.pixels if isinstance(draw, Draw) else sample.normal)
        if reason is None:
            told = {"gate": gate.name, "refused": tuple(refused)}
            return replace(sample, provenance=sample.provenance.model_copy(update=told))
        refused.append(reason)
        return None

    def normals(self, count: int = 50) -> Iterator[tuple[str, Pixels]]:
        """The first normals, with their products: what a detector is trained on beside the samples."""
        for sample in self._wanted.normals.images[:count]:
            yield sample.product, self._photographs.read(sample.path).pixels

    def _category(self, index: int) -> str:
        return self._wanted.categories[index % len(self._wanted.categories)]

    def _draw_photograph(self, rng: np.random.Generator, index: int, attempt: int) -> Draw:
        samples = self._wanted.normals.images
        sample = samples[int(rng.integers(len(samples)))]
        return Draw(index, attempt, self._category(index), sample, self._photographs.read(sample.path))

    def _record(self, draw: Draw) -> dict[str, object]:
        """What every manifest row tells of its source."""
        return {"source": str(draw.sample.path), "source_sha256": self._sha256(draw.sample.path)}


AnyStream = SampleStream[Any, Any]


_REFUSALS: dict[Control, str] = {
    "region": "cannot be told where (--region); {} can",
    "mixture": "cannot mix categories; {} can",
    "union": "cannot unite categories; {} can",
    "reference": "makes its defects up, it takes none from references (--from); {} does",
    "style": "takes no style (--style); {} does",
}


def require(control: Control, row: MethodInfo, who: str) -> None:
    """Check that a method can be controlled so.

    Raises:
        UsageError: it cannot, with those that can, after the words `who`.
    """
    if control not in row.controls:
        raise UsageError(f"{who} {_REFUSALS[control].format(having(control))}")


def visible(photograph: DecodedImage, after: Pixels, mask: NDArray[np.bool_]) -> bool:
    """Whether a defect can be seen: more than a speck, and half of it changed by some ten gray levels of 255.

    One that leaves nothing of the photograph cannot: against what should it be seen?
    """
    if mask.sum() < masks.SMALLEST or mask.all():
        return False
    change = np.abs(after[mask].astype(np.float32) - photograph.pixels[mask])
    strongest = change.max(axis=1) if change.ndim == 2 else change
    low, high = value_range(photograph)
    return bool(np.median(strongest) > masks.VISIBLE * (high - low))


def mixture(text: str) -> dict[str, float]:
    """The categories of `crack`, of the union `crack+hole`, 1 each, or of the mixture `crack:0.3,hole:0.7`.

    The weights of a mixture add up to 1.

    Raises:
        UsageError: weights that are no numbers above 0.
    """
    if ":" not in text:
        return dict.fromkeys(text.split("+"), 1.0)
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition(":")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            weights[name.strip()] = 0.0
    if "" in weights or not all(0 < weight < float("inf") for weight in weights.values()):
        raise UsageError(f"--category {text}: give a name, or names with weights above 0, as crack:0.3,hole:0.7")
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def mixture_name(weights: Mapping[str, float]) -> str:
    """What samples of a mixture are filed under: `crack0.3+hole0.7`; of a union: `crack+hole`."""
    return "+".join(name if w == 1 else f"{name}{w:.3g}" for name, w in weights.items())
