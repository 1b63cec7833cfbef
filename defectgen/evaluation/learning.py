"""What networks learn from real images without and with datasets: several at a time, and what their scores say."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from defectgen import files
from defectgen.errors import UsageError
from defectgen.evaluation import downstream
from defectgen.evaluation.data import Example, LabeledImage
from defectgen.evaluation.downstream import AUGMENTATIONS, Plan, TrainingSet, Verdict
from defectgen.folders import NORMAL

SHARES = 0.0, 0.25, 0.5
"""Of the defects that a network sees, the synthetic part: what is tried on a validation part of the real images."""
METRICS = {"classification": "balanced_accuracy", "segmentation": "ap"}
"""What decides whether a dataset helps."""
NAMES = {
    "balanced_accuracy": "balanced accuracy", "f1": "F1", "ap": "average precision", "auroc": "AUROC of images",
    "iou": "IoU", "recall": "recall", "f1_pixels": "F1 of pixels",
}  # fmt: skip
_FOLDS = 3
_USUAL_SHARE = 0.25  # where there is one real defect of a kind, and nothing to validate on
_TELLS = 0.05  # a change of a category's score that is worth a word

OnStage = Callable[[str, int, int], None]
Key = TypeVar("Key")
Value = TypeVar("Value")


class ScoreCache:
    """What was measured so far, on disk after each network. Safe to share among threads."""

    def __init__(self, path: Path, identity: str, *, resume: bool) -> None:
        self._path, self._identity, self._scores = path, identity, dict[str, Any]()
        self._lock = Lock()
        if resume and path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["identity"] != identity:
                raise UsageError(f"{path}: is of other images or options; replace it with --overwrite")
            self._scores = saved["scores"]

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._scores:
                return self._scores[key]
        value = measure()
        with self._lock:
            self._scores[key] = value
            files.write(self._path, json.dumps({"identity": self._identity, "scores": self._scores}) + "\n")
        return value


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
        """`images` are those of `train`; `used` are the SHA-256 of what each dataset of `made` was made of."""
        self._plan, self._seeds, self._fixed_share = plan, seeds, share
        self._categories, self._images, self._train, self._test = categories, images, train, test
        self._made, self._used = made, used
        self._scores, self._on_stage = scores, on_stage
        self._threads = 1 if plan.device.type == "cuda" else max(1, os.cpu_count() or 1)
        self._lock, self._done, self._total, self._stopped = Lock(), 0, 0, False

    def of(self, shots: int | None) -> dict[str, Any]:
        """Every training set with so many real defects of each category, over the seeds."""
        word, seeds = "all" if shots is None else str(shots), self._seeds
        reals = {seed: self._drawn(shots, seed) for seed in seeds}
        networks = len(seeds) * (len(AUGMENTATIONS) + 2 * len(self._made))
        validations = (_FOLDS * (1 + (len(SHARES) - 1) * len(self._made))) / 2 if self._fixed_share is None else 0
        self._done, self._total = 0, int((networks + validations) * self._plan.steps)
        shares = {name: self._share(name, word, reals[seeds[0]]) for name in self._made}
        jobs: dict[str, Callable[[int], TrainingSet]] = {
            name: lambda seed, name=name: TrainingSet(reals[seed], augmentation=name)  # type: ignore[misc]
            for name in AUGMENTATIONS
        }
        for name, made in self._made.items():
            if shares[name] > 0:
                jobs[name] = lambda seed, made=made, share=shares[name]: TrainingSet(reals[seed], made, share)  # type: ignore[misc]
            jobs[f"{name} alone"] = lambda seed, made=made: TrainingSet(  # type: ignore[misc]
                [each for each in reals[seed] if not each.label], made, 1.0
            )
        keys = [(name, seed) for seed in seeds for name in jobs]
        rows = self._each(lambda key: self._score(f"{word}/{key[0]}/{key[1]}", jobs[key[0]](key[1]), key[1]), keys)
        by_set = {name: [row for (own, _), row in zip(keys, rows, strict=True) if own == name] for name in jobs}
        return {
            "shots": shots,
            "sets": {name: _summarized(mine) for name, mine in by_set.items()},
            "datasets": {name: self._answer(name, shares[name], by_set, shots) for name in self._made},
        }

    def _drawn(self, shots: int | None, seed: int) -> list[Example]:
        """The normals, and so many real defects of each category, which a seed draws.

        Those that a dataset was made of are among them, if they are no more: whoever made it has them.
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

    def _score(self, key: str, training: TrainingSet, seed: int) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            network = downstream.train(training, len(self._categories) + 1, self._plan, seed, self._step)
            return downstream.test(network, self._test, self._categories, self._plan.device)

        found: dict[str, Any] = self._scores.get(key, measure)
        return found

    def _each(self, function: Callable[[Key], Value], keys: Sequence[Key]) -> list[Value]:
        """The function of each key, several at a time. Whatever ends it early ends the networks under way, too."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="networks") as pool:
            futures = [pool.submit(function, key) for key in keys]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _step(self) -> None:
        if self._stopped:
            raise RuntimeError("stopped with the evaluation")
        with self._lock:
            self._done += 1
            done = self._done
        if done % 10 == 0:
            self._on_stage("networks", min(done, self._total), self._total)

    def _share(self, name: str, word: str, real: Sequence[Example]) -> float:
        """The share of synthetic defects with which networks do best on real ones that they did not see."""
        if self._fixed_share is not None:
            return self._fixed_share
        smallest = min(Counter(each.label for each in real if each.label).values())
        if smallest < 2:
            return _USUAL_SHARE
        folds = min(_FOLDS, smallest)
        plan = replace(self._plan, steps=max(self._plan.steps // 2, 1))

        def measure(share: float, fold: int) -> float:
            # The places of each class in turn, so that every fold has some of each.
            place: Counter[int] = Counter()
            inside: list[Example] = []
            outside: list[Example] = []
            for each in real:
                (outside if place[each.label] % folds == fold else inside).append(each)
                place[each.label] += 1
            training = TrainingSet(inside, self._made[name] if share else (), share)
            network = downstream.train(training, len(self._categories) + 1, plan, self._seeds[0], self._step)
            found = downstream.test(network, outside, self._categories, plan.device)
            return float(found["ap"] + found["balanced_accuracy"]) / 2

        keys = [(share, fold) for share in SHARES for fold in range(folds)]
        values = self._each(
            lambda key: self._scores.get(
                f"share/{word}/{name if key[0] else 'none'}/{key[0]}/{key[1]}", lambda: measure(*key)
            ),
            keys,
        )
        means = {
            share: float(np.mean([v for (s, _), v in zip(keys, values, strict=True) if s == share])) for share in SHARES
        }
        return max(SHARES, key=lambda share: (means[share], -share))

    def _answer(
        self, name: str, share: float, by_set: Mapping[str, list[dict[str, Any]]], shots: int | None
    ) -> dict[str, Any]:
        """What the scores say of a dataset: for each task a verdict, and why, category by category."""
        answer: dict[str, Any] = {"share": share, "tasks": {}, "categories": {}, "reasons": []}
        for task, metric in METRICS.items():
            baseline = max(AUGMENTATIONS, key=lambda own: _mean(by_set[own], metric))
            if share == 0:
                answer["tasks"][task] = {"verdict": "do not use it", "decided_by": metric, "baseline": baseline}
                continue
            verdict = downstream.judge(*([row[metric] for row in by_set[own]] for own in (name, baseline)))
            answer["tasks"][task] = {**asdict(verdict), "decided_by": metric, "baseline": baseline}
        if share == 0:
            answer["reasons"].append("on real images held out from training, networks did best without it")
        else:
            for category in self._categories:
                gains = self._gains(category, name, answer["tasks"], by_set)
                answer["categories"][category] = {key: asdict(value) for key, (value, _, _) in gains.items()}
                for metric, (verdict, before, after) in gains.items():
                    if abs(verdict.gain) >= _TELLS:
                        way = "better" if verdict.gain > 0 else "worse"
                        answer["reasons"].append(f"{category} gets {way}: {NAMES[metric]} {before:.2f} -> {after:.2f}")
        if (note := self._too_many(name, shots)) is not None:
            answer["note"] = note
        return answer

    def _gains(
        self, category: str, name: str, tasks: Mapping[str, Any], by_set: Mapping[str, list[dict[str, Any]]]
    ) -> dict[str, tuple[Verdict, float, float]]:
        found = {}
        for task, metric in (("classification", "recall"), ("segmentation", "ap")):
            after, before = (
                [row["categories"][category][metric] for row in by_set[own] if category in row["categories"]]
                for own in (name, tasks[task]["baseline"])
            )
            if after:
                found[metric] = downstream.judge(after, before), float(np.mean(before)), float(np.mean(after))
        return found

    def _too_many(self, name: str, shots: int | None) -> str | None:
        """That a dataset was made of more real defects than the shots allow, if it was, by what is written of it."""
        if shots is None:
            return None
        used = self._used[name]
        counted = Counter(image.category for image in self._images if image.category != NORMAL and image.sha256 in used)
        more = {category: count for category, count in counted.items() if count > shots}
        if not more:
            return None
        words = ", ".join(f"{count} of {category}" for category, count in sorted(more.items()))
        return f"{name} was made of more real defects than {shots} shots: {words}; its gain is that of those, too"


def _summarized(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and spreads over the seeds, in all and for each category."""
    names = [key for key, value in rows[0].items() if isinstance(value, float)]
    categories = rows[0]["categories"]
    return {
        "scores": downstream.summary({key: [row[key] for row in rows] for key in names}),
        "categories": {
            category: downstream.summary({key: [row["categories"][category][key] for row in rows] for key in of})
            for category, of in categories.items()
        },
        "curve": np.mean([row["curve"] for row in rows], axis=0).round(4).tolist(),
        "by_seed": {key: [row[key] for row in rows] for key in METRICS.values()},
    }


def _mean(rows: Sequence[Mapping[str, Any]], metric: str) -> float:
    return float(np.mean([row[metric] for row in rows]))
