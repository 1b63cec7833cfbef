"""Trains and tests the downstream networks, several at a time, and derives the verdicts from their scores."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from defectgen import files, ranks
from defectgen.device import one_thread
from defectgen.errors import BadInputError, UsageError
from defectgen.evaluation import downstream
from defectgen.evaluation.data import Example, LabeledImage
from defectgen.evaluation.downstream import AUGMENTATIONS, Augmentation, Plan, TrainingSet, Verdict
from defectgen.folders import NORMAL

SHARES = 0.0, 0.25, 0.5
"""The shares of synthetic defects that cross-validation on the real training images compares."""
METRICS = {"classification": "balanced_accuracy", "segmentation": "mean_ap"}
"""The score of each task that decides whether a dataset helps."""
NAMES = {
    "balanced_accuracy": "balanced accuracy", "f1": "F1", "mean_ap": "average precision, mean of categories",
    "ap": "average precision", "auroc": "AUROC of images",
    "iou": "IoU", "recall": "recall", "f1_pixels": "F1 of pixels",
}  # fmt: skip
CANNOT_TELL = "cannot tell: the networks learnt nothing"
"""The verdict where networks score no better than guesses, with a dataset and without."""
_FOLDS = 3
_USUAL: Augmentation = "traditional"
_DEFAULT_SHARE = 0.25  # if a category has a single real defect, which rules out cross-validation
_NOTABLE_GAIN = 0.05  # change of a category's score that is listed as a reason
_TASKS = {"recall": "classification", "ap": "segmentation"}  # that a category's scores belong to
_LUCK = 2.0  # standard errors of a guess
_PIXEL_LUCK = 2.0, 0.02  # average precision of guesses: times the share of pixels with defects, and above it

OnStage = Callable[[str, int, int], None]


class _Saved(BaseModel):
    """The file of a `ScoreCache`. `sha256` is that of the scores."""

    identity: str
    sha256: str
    scores: dict[str, Any]


class ScoreCache:
    """A thread-safe cache of scores, saved to disk after each network. Only rank 0 saves them."""

    def __init__(self, path: Path, identity: str, *, resume: bool) -> None:
        """Read the scores of an earlier run if `resume`.

        Raises:
            UsageError: they are of other images or options. BadInputError: the file is damaged.
        """
        self._path, self._identity, self._scores = path, identity, dict[str, Any]()
        self._lock = Lock()
        if resume and ranks.is_main() and path.is_file():
            saved = _read_scores(path)
            if saved.identity != identity:
                raise UsageError(f"{path}: belongs to other images or options; replace it with --overwrite")
            self._scores = saved.scores
        self.spread()

    def __contains__(self, key: str) -> bool:
        return key in self._scores

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._scores:
                return self._scores[key]
        value = measure()
        with self._lock:
            self._scores[key] = value
            if ranks.is_main():
                saved = _Saved(identity=self._identity, sha256=_digest(self._scores), scores=self._scores)
                files.write(self._path, json.dumps(saved.model_dump()) + "\n")
        return value

    def spread(self) -> None:
        """Give all ranks the scores of rank 0."""
        self._scores = ranks.share(lambda: self._scores)


def _read_scores(path: Path) -> _Saved:
    try:
        saved = _Saved.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise BadInputError(f"{path}: damaged: {what}; evaluate again with --overwrite") from error
    if saved.sha256 != _digest(saved.scores):
        raise BadInputError(f"{path}: damaged: the scores do not match their sha256; evaluate again with --overwrite")
    return saved


def _digest(scores: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(scores, sort_keys=True).encode()).hexdigest()


class Learning:
    """Trains and tests the networks of an evaluation, several at a time."""

    def __init__(
        self,
        plan: Plan,
        seeds: Sequence[int],
        share: float | None,
        categories: Sequence[str],
        images: Sequence[LabeledImage],
        train: Sequence[Example],
        test: Sequence[Example],
        made: Mapping[str, Sequence[Example]],
        used: Mapping[str, frozenset[str]],
        scores: ScoreCache,
        on_stage: OnStage,
    ) -> None:
        """`images` are the files of `train`; `used` are the SHA-256 of what each dataset of `made` was made from."""
        self._plan, self._seeds, self._fixed_share = plan, seeds, share
        self._categories, self._images, self._train, self._test = categories, images, train, test
        self._made, self._used = made, used
        self._scores, self._on_stage = scores, on_stage
        self._threads = 1 if plan.device.type == "cuda" else max(1, (os.cpu_count() or 1) // ranks.on_machine())
        self._lock, self._done, self._total, self._stopped = Lock(), 0, 0, False
        self._guesses = guesses(test, len(seeds))

    def of(self, shots: int | None) -> dict[str, Any]:
        """Scores of all training sets with `shots` real defects per category over the seeds, and the comparisons."""
        shots_key, seeds = "all" if shots is None else str(shots), self._seeds
        reals = {seed: self._draw_shots(shots, seed) for seed in seeds}
        networks = len(seeds) * (len(AUGMENTATIONS) + 2 * len(self._made))
        choices = len(AUGMENTATIONS) + (len(SHARES) - 1) * len(self._made) * (self._fixed_share is None)
        self._done, self._total = 0, int((networks + _FOLDS * choices / 2) * self._plan.steps)
        augmentation = self._choose_augmentation(shots_key, reals[seeds[0]])
        shares = {name: self._choose_share(name, augmentation, shots_key, reals[seeds[0]]) for name in self._made}
        jobs: dict[str, Callable[[int], TrainingSet]] = {
            name: lambda seed, name=name: TrainingSet(reals[seed], augmentation=name)  # type: ignore[misc]
            for name in AUGMENTATIONS
        }
        for name, made in self._made.items():
            if shares[name] > 0:
                jobs[name] = lambda seed, made=made, share=shares[name]: TrainingSet(  # type: ignore[misc]
                    reals[seed], made, share, augmentation
                )
            jobs[f"{name} alone"] = lambda seed, made=made: TrainingSet(  # type: ignore[misc]
                [each for each in reals[seed] if not each.label], made, 1.0, augmentation
            )
        keys = [(name, seed) for seed in seeds for name in jobs]
        rows = self._scores_of(
            {f"{shots_key}/{name}/{seed}": partial(self._measure, jobs[name], seed) for name, seed in keys}
        )
        by_set = {name: [row for (own, _), row in zip(keys, rows, strict=True) if own == name] for name in jobs}
        return {
            "shots": shots,
            "augmentation": augmentation,
            "sets": {name: _summarize(mine) for name, mine in by_set.items()},
            "datasets": {name: self._compare(name, augmentation, shares[name], by_set, shots) for name in self._made},
        }

    def _draw_shots(self, shots: int | None, seed: int) -> list[Example]:
        """The normals and `shots` real defects of each category, drawn with a seed.

        Real defects that a dataset was made from come first, unless there are more than `shots`: whoever made the
        dataset has them.
        """
        if shots is None:
            return list(self._train)
        used = frozenset().union(*self._used.values())
        rng = np.random.default_rng([seed, shots])
        chosen = [i for i, each in enumerate(self._train) if not each.label]
        for label in range(1, len(self._categories) + 1):
            mine = [i for i, each in enumerate(self._train) if each.label == label]
            known = [i for i in mine if self._images[i].sha256 in used]
            first = known if len(known) <= shots else []
            others = rng.permutation([i for i in mine if i not in first]).tolist()
            chosen += [*first, *others][:shots]
        return [self._train[i] for i in chosen]

    def _measure(self, training: Callable[[int], TrainingSet], seed: int) -> dict[str, Any]:
        network = downstream.train(training(seed), len(self._categories) + 1, self._plan, seed, self._count_step)
        return downstream.test(network, self._test, self._categories, self._plan.device)

    def _scores_of(self, jobs: Mapping[str, Callable[[], Any]]) -> list[Any]:
        """The scores of jobs, by their keys in the cache. Those that it lacks are measured in parallel, by all ranks.

        An exception also stops the networks that are still training.
        """
        cache = self._scores
        own = ranks.mine([key for key in jobs if key not in cache])
        with one_thread(), ThreadPoolExecutor(self._threads, thread_name_prefix="networks") as pool:
            futures = {key: pool.submit(cache.get, key, jobs[key]) for key in own}
            try:
                for key, value in ranks.gathered((key, future.result()) for key, future in futures.items()):
                    cache.get(key, partial(copy, value))  # that of another rank
            except BaseException:
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        cache.spread()
        return [cache.get(key, job) for key, job in jobs.items()]

    def _count_step(self) -> None:
        if self._stopped:
            raise RuntimeError("the evaluation was stopped")
        with self._lock:
            self._done += ranks.count()  # the others are about as fast
            done = self._done
        if done % 10 == 0:
            self._on_stage("networks", min(done, self._total), self._total)

    def _choose_augmentation(self, shots_key: str, real: Sequence[Example]) -> Augmentation:
        """The augmentation with which the real images alone score best. Datasets are trained with and judged by it.

        A dataset that was compared with another augmentation would be charged with what the augmentation does. It is
        the traditional one unless the folds prove that another one helps: few defects make the choice a coin's, and
        every dataset seems to help beside an augmentation that hurts.
        """
        candidates: dict[str, TrainingSet] = {name: TrainingSet(real, augmentation=name) for name in AUGMENTATIONS}
        scores = self._cross_validate(shots_key, candidates)
        if scores is None:
            return _USUAL
        found = {name: downstream.judge(scores[name], scores[_USUAL]) for name in AUGMENTATIONS}
        better = [name for name in AUGMENTATIONS if found[name].verdict == "helps"]
        return max(better, key=lambda name: found[name].gain, default=_USUAL)

    def _choose_share(self, name: str, augmentation: Augmentation, shots_key: str, real: Sequence[Example]) -> float:
        """The share of synthetic defects with which a dataset scores best."""
        if self._fixed_share is not None:
            return self._fixed_share
        candidates = {
            f"{name}/{share}" if share else augmentation: TrainingSet(real, self._made[name], share, augmentation)
            for share in SHARES
        }
        scores = self._cross_validate(shots_key, candidates)
        if scores is None:
            return _DEFAULT_SHARE
        means = [float(np.mean(values)) for values in scores.values()]
        return max(zip(SHARES, means, strict=True), key=lambda pair: (pair[1], -pair[0]))[0]

    def _cross_validate(self, shots_key: str, candidates: Mapping[str, TrainingSet]) -> dict[str, list[float]] | None:
        """The scores of training sets on folds of their real images; None if a category has a single defect."""
        real = next(iter(candidates.values())).real
        smallest = min(Counter(each.label for each in real if each.label).values())
        if smallest < 2:
            return None
        folds = min(_FOLDS, smallest)
        plan = replace(self._plan, steps=max(self._plan.steps // 2, 1))

        def measure(training: TrainingSet, fold: int) -> float:
            # Deal the examples of each class to the folds in turn, so that each fold has all classes.
            place: Counter[int] = Counter()
            inside: list[Example] = []
            outside: list[Example] = []
            for each in real:
                (outside if place[each.label] % folds == fold else inside).append(each)
                place[each.label] += 1
            part = replace(training, real=inside)
            network = downstream.train(part, len(self._categories) + 1, plan, self._seeds[0], self._count_step)
            found = downstream.test(network, outside, self._categories, plan.device)
            return sum(found[metric] for metric in METRICS.values()) / len(METRICS)

        keys = [(name, fold) for name in candidates for fold in range(folds)]
        values = self._scores_of(
            {f"choice/{shots_key}/{name}/{fold}": partial(measure, candidates[name], fold) for name, fold in keys}
        )
        return {
            name: [value for (own, _), value in zip(keys, values, strict=True) if own == name] for name in candidates
        }

    def _compare(
        self,
        name: str,
        baseline: Augmentation,
        share: float,
        by_set: Mapping[str, list[dict[str, Any]]],
        shots: int | None,
    ) -> dict[str, Any]:
        """Compare a dataset with the same training without it: a verdict for each task, and reasons by category."""
        answer: dict[str, Any] = {"share": share, "tasks": {}, "categories": {}, "reasons": []}
        unknown = set[str]()
        for task, metric in METRICS.items():
            of_sets = [[row[metric] for row in by_set[own]] for own in (name, baseline) if own in by_set]
            answer["tasks"][task] = {"verdict": "do not use it", "decided_by": metric}
            if share > 0:
                answer["tasks"][task] |= asdict(downstream.judge(*of_sets))
            best, guess = max(float(np.mean(scores)) for scores in of_sets), self._guesses[metric]
            if best <= guess.limit:
                unknown.add(task)
                answer["tasks"][task]["verdict"] = CANNOT_TELL
                answer["reasons"].append(
                    f"{task}: {NAMES[metric]} {best:.3f} is no better than guessing, {guess.mean:.3f}; train longer "
                    "(--steps, or without --quick), or on more real images"
                )
        if unknown == METRICS.keys():
            pass
        elif share == 0:
            why = "networks scored best without it in cross-validation on the real training images"
            answer["reasons"].append(why if self._fixed_share is None else "--share 0 leaves it out")
        else:
            for category in self._categories:
                gains = _gains(category, by_set[name], by_set[baseline])
                answer["categories"][category] = {key: asdict(value) for key, (value, _, _) in gains.items()}
                for metric, (verdict, before, after) in gains.items():
                    if abs(verdict.gain) >= _NOTABLE_GAIN and _TASKS[metric] not in unknown:
                        gets = "gets" if verdict.verdict in ("helps", "hurts") else "may get"
                        way = "better" if verdict.gain > 0 else "worse"
                        answer["reasons"].append(
                            f"{category} {gets} {way}: {NAMES[metric]} {before:.2f} -> {after:.2f}"
                        )
        if (note := self._shots_note(name, shots)) is not None:
            answer["note"] = note
        return answer

    def _shots_note(self, name: str, shots: int | None) -> str | None:
        """A note if the dataset was made from more real defects than the shots, according to its manifest."""
        if shots is None:
            return None
        used = self._used[name]
        counted = Counter(image.category for image in self._images if image.category != NORMAL and image.sha256 in used)
        more = {category: count for category, count in counted.items() if count > shots}
        if not more:
            return None
        excess = ", ".join(f"{count} of {category}" for category, count in sorted(more.items()))
        return f"{name} was made from more real defects than {shots} shots: {excess}; its gain includes theirs"


@dataclass(frozen=True)
class Guess:
    """The mean score of guesses, and the highest that is still explained by luck."""

    mean: float
    limit: float


def guesses(test: Sequence[Example], seeds: int) -> dict[str, Guess]:
    """What networks that learnt nothing score on test images, for each of `METRICS`, as a mean over the seeds."""
    images, defects, pixels = Counter[int](), Counter[int](), Counter[int]()
    for each in test:
        mask = each.mask
        images[each.label] += 1
        defects[each.label] += int(mask.sum())
        pixels[each.label] += mask.size
    chance = 1 / len(images)
    error = math.sqrt(sum(chance * (1 - chance) / count for count in images.values()) / seeds) * chance
    shares = [defects[label] / (pixels[label] + pixels[0]) for label in images if label]
    share = float(np.mean(shares)) if shares else 0.0
    times, above = _PIXEL_LUCK
    return {
        "balanced_accuracy": Guess(chance, chance + _LUCK * error),
        "mean_ap": Guess(share, max(times * share, share + above)),
    }


def _summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and spreads over the seeds, overall and for each category."""
    names = [key for key, value in rows[0].items() if isinstance(value, float)]
    categories = rows[0]["categories"]
    return {
        "scores": downstream.summary({key: [row[key] for row in rows] for key in names}),
        "categories": {
            category: downstream.summary({key: [row["categories"][category][key] for row in rows] for key in of})
            for category, of in categories.items()
        },
        "curve": np.mean([row["curve"] for row in rows], axis=0).round(4).tolist(),
        "alarms": _highest(alarm for row in rows for alarm in row["alarms"]),
        "by_seed": {key: [row[key] for row in rows] for key in METRICS.values()},
    }


def _highest(alarms: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """The alarms of several networks, highest first, one for each image."""
    of_images: dict[int, list[Any]] = {}
    for alarm in sorted(alarms, key=lambda alarm: -alarm[3]):
        of_images.setdefault(alarm[0], list(alarm))
    return list(of_images.values())[: downstream.ALARMS]


def _gains(
    category: str, with_it: Sequence[Mapping[str, Any]], without: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[Verdict, float, float]]:
    """For each score that tells of a category: the verdict, and the means without and with the dataset."""
    found = {}
    for metric in ("recall", "ap"):
        after, before = (
            [row["categories"][category][metric] for row in rows if category in row["categories"]]
            for rows in (with_it, without)
        )
        if after:
            found[metric] = downstream.judge(after, before), float(np.mean(before)), float(np.mean(after))
    return found
