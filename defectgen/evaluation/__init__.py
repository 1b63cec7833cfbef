"""Does the synthetic data help? Fidelity, copies, masks, and what networks learn from it, in one report.

Sees files alone: real photographs, a dataset, and what its manifest says of how it was made.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from defectgen import __version__, files
from defectgen.device import resolve
from defectgen.errors import UsageError
from defectgen.evaluation import copies, downstream, fidelity, report
from defectgen.evaluation.data import (
    Example,
    LabeledImage,
    Real,
    Synthetic,
    check_sides,
    load_examples,
    load_mask,
    near_duplicates,
    read_real,
    read_synthetic,
    remove_test_leakage,
    split,
    to_common_channels,
    to_model_range,
)
from defectgen.evaluation.downstream import TRAINING_SETS, Plan, TrainingSet
from defectgen.folders import DEFECT, NORMAL, collapsed
from defectgen.imaging.images import read_image
from defectgen.imaging.windows import FloatArray, value_range
from defectgen.nn.features import Extractor, extractor

_DECIDES = {"classification": "accuracy", "segmentation": "f1"}
_RESULTS, _REPORT = "results.json", "report.json"
_WORST = 6  # pairs to look at


@dataclass(frozen=True)
class Extent:
    """How much is done."""

    steps: int
    seeds: int
    samples: int
    """With defects, real or synthetic, in all, at most."""
    normals: int
    """To train on, and to test on, at most."""

    def of(self, seeds: int | None = None, steps: int | None = None) -> "Extent":
        """The same with another number of networks of each kind, or of steps to train them."""
        return replace(self, seeds=seeds or self.seeds, steps=steps or self.steps)


QUICK = Extent(steps=200, seeds=3, samples=200, normals=100)
WHOLE = Extent(steps=600, seeds=5, samples=1000, normals=300)


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate. `test` are real photographs kept apart; without them some of `real` are put aside."""

    real: Path
    synthetic: Path
    out: Path = Path("report")
    normals: Path | None = None
    test: Path | None = None
    extent: Extent = WHOLE
    features: Mapping[str, Path] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False


OnStage = Callable[[str, int, int], None]


def evaluate(request: EvaluateRequest, on_stage: OnStage = lambda *_: None) -> dict[str, Any]:
    """The report, also written as `report.json` and `report.html`; what was measured is kept for `resume`.

    Raises:
        BadInputError: folders without what is needed, or a test photograph that the dataset was made of.
        UsageError: nothing left to test on, or a report that is there already.
        WeightsError: a feature network that cannot be used.
    """
    out, device = request.out, resolve(request.device)
    if (out / _RESULTS).exists() and not request.resume and not request.overwrite:
        raise UsageError(f"{out}: a report is there; go on with --resume, or replace it with --overwrite")
    # Before anything long begins.
    networks = {kind: extractor(kind, path, device) for kind, path in request.features.items()}
    real, synthetic, left_out, skipped = read(request)
    categories = _categories(real, synthetic)
    rng = np.random.default_rng(request.seed)
    # All are held in memory: of normals there may be tens of thousands.
    real = Real(*(_thinned(part, request.extent, rng) for part in (real.train, real.test)))
    made = _thinned(synthetic.images, request.extent, rng)
    if categories == (DEFECT,):
        real, made = Real(*(_as_one_category(part) for part in (real.train, real.test))), _as_one_category(made)

    train, test, synthesized = (
        load_examples(images, categories, synthetic=images is made) for images in (real.train, real.test, made)
    )
    train, test, synthesized = to_common_channels(train, test, synthesized)
    if all(each.mask.all() for each in test if each.label):
        raise UsageError(f"{request.test or request.real}: the masks of the test mark everything; nothing can be found")
    plan = Plan(request.extent.steps, request.extent.seeds, device)
    kept = _ScoreCache(out / _RESULTS, _identity(request, real, made), resume=request.resume)
    found: dict[str, Any] = {
        "defectgen": __version__,
        "device": str(device),
        "real": str(request.real),
        "synthetic": str(request.synthetic),
        "extent": asdict(request.extent),
        "seed": request.seed,
        "counts": {
            "real_train": counts(real.train), "real_test": counts(real.test), "synthetic": counts(made),
            "left_out_as_near_duplicates": left_out,
        },
        "traceable": synthetic.traceable,
        "made_by_model": synthetic.made_by_model,
        "trained_on_known": synthetic.trained_on_known,
        "skipped": skipped,
    }  # fmt: skip
    defects = [each for each in train if each.label]
    found["fidelity"] = _fidelity(defects, synthesized, categories, networks, request.seed, on_stage)
    found["memorisation"], pairs = _memorisation(defects, synthesized, real.train, made, on_stage)
    found["mask_agreement"] = _agreement(made, on_stage)
    found["downstream"] = _downstream(train, synthesized, test, len(categories) + 1, plan, request.seed, kept, on_stage)
    files.write(out / _REPORT, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    report.write(out / "report.html", found, _sheets(defects, synthesized, categories, pairs))
    return found


def read(request: EvaluateRequest) -> tuple[Real, Synthetic, int, list[str]]:
    """The real photographs in two parts, and the dataset.

    And how many were left out as near-duplicates of the test, and what cannot be used.
    """
    found, synthetic = read_real(request.real, request.normals), read_synthetic(request.synthetic)
    images, skipped = found.images, [*found.skipped, *synthetic.skipped]
    if request.test is None:
        real = split(images, synthetic, request.seed)
    else:
        apart_found = read_real(request.test, apart=True)
        test = apart_found.images
        skipped += apart_found.skipped
        twins = near_duplicates(images, test)
        real = Real(tuple(each for each, twin in zip(images, twins, strict=True) if not twin), test)
        check_sides(real)
    apart = remove_test_leakage(synthetic, real.test)
    left_out = len(images) + len(synthetic.images) - len(apart.images) - len(real.train)
    return real, apart, left_out - (0 if request.test else len(real.test)), skipped


def _categories(real: Real, synthetic: Synthetic) -> tuple[str, ...]:
    """Those of the real defects to train on; one for all, if other defects are told apart in another way."""
    known = sorted({each.category for each in real.train} - {NORMAL})
    strange = {each.category for each in (*real.test, *synthetic.images)} - {NORMAL, *known}
    return (DEFECT,) if strange else tuple(known)


def _as_one_category(images: Sequence[LabeledImage]) -> tuple[LabeledImage, ...]:
    return tuple(replace(image, category=collapsed(image.category)) for image in images)


def _thinned(images: Sequence[LabeledImage], extent: Extent, rng: np.random.Generator) -> tuple[LabeledImage, ...]:
    """As many as the extent allows, of each category of defects alike."""
    categories = sorted({each.category for each in images})
    of_each = max(extent.samples // max(len(set(categories) - {NORMAL}), 1), 1)
    chosen: set[int] = set()
    for category in categories:
        mine = [i for i, each in enumerate(images) if each.category == category]
        chosen.update(rng.permutation(mine)[: extent.normals if category == NORMAL else of_each].tolist())
    return tuple(each for i, each in enumerate(images) if i in chosen)


def counts(images: Sequence[LabeledImage]) -> dict[str, int]:
    """How many there are of each category."""
    names = [each.category for each in images]
    return {name: names.count(name) for name in sorted(set(names))}


def _identity(request: EvaluateRequest, real: Real, made: Sequence[LabeledImage]) -> str:
    """What the measurements depend on; those of another are not gone on with."""
    images = (*real.train, *real.test, *made)
    masks = [None if each.mask is None else files.sha256(each.mask) for each in images]
    parts = [(each.sha256, mask, each.category) for each, mask in zip(images, masks, strict=True)]
    return hashlib.sha256(json.dumps([asdict(request.extent), request.seed, parts]).encode()).hexdigest()


class _ScoreCache:
    """What was measured so far, on disk after each network."""

    def __init__(self, path: Path, identity: str, *, resume: bool) -> None:
        self._path, self._identity, self._scores = path, identity, dict[str, Any]()
        if resume and path.is_file():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["identity"] != identity:
                raise UsageError(f"{path}: is of other photographs or options; start anew with --overwrite")
            self._scores = saved["scores"]

    def get(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self._scores:
            self._scores[key] = measure()
            files.write(self._path, json.dumps({"identity": self._identity, "scores": self._scores}) + "\n")
        scores: dict[str, Any] = self._scores[key]
        return scores


# --- The parts -------------------------------------------------------------------------------------------------


def _windows(examples: Sequence[Example]) -> FloatArray:
    return np.stack([fidelity.window_around(each.x, each.mask) for each in examples])


def _fidelity(
    defects: Sequence[Example],
    made: Sequence[Example],
    categories: Sequence[str],
    networks: Mapping[str, Extractor],
    seed: int,
    on_stage: OnStage,
) -> dict[str, dict[str, float]]:
    """For each category the distances; beside that of the patches its floor, between the halves of the real ones."""
    found = {}
    for done, category in enumerate(categories):
        on_stage("fidelity", done, len(categories))
        ours, theirs = ([e for e in each if e.label == done + 1 and e.mask.any()] for each in (defects, made))
        if len(ours) < 2 or len(theirs) < 2:
            continue
        real, synthesized = _windows(ours), _windows(theirs)
        half = np.random.default_rng(seed).permutation(len(real))
        found[category] = {
            "real": len(real),
            "synthetic": len(synthesized),
            "swd": fidelity.sliced_wasserstein(real, synthesized, seed),
            "swd_of_real_halves": fidelity.sliced_wasserstein(real[half[::2]], real[half[1::2]], seed),
        }
        if "inception" in networks:
            a, b = (networks["inception"](windows) for windows in (real, synthesized))
            precision, recall = fidelity.precision_and_recall(a, b)
            found[category] |= {
                "fid": fidelity.fid(a, b), "kid": fidelity.kid(a, b), "precision": precision, "recall": recall,
            }  # fmt: skip
        if "lpips" in networks:
            a, b = (networks["lpips"](windows) for windows in (real, synthesized))
            found[category]["clustered_lpips"] = fidelity.clustered_lpips(a, b)
    return found


def _memorisation(
    defects: Sequence[Example],
    made: Sequence[Example],
    real: Sequence[LabeledImage],
    images: Sequence[LabeledImage],
    on_stage: OnStage,
) -> tuple[dict[str, Any], list[tuple[FloatArray, FloatArray, float]]]:
    """How many synthetic defects are near-copies; the nearest pairs, by name and to look at."""
    on_stage("copies", 0, 1)
    shown = [i for i, each in enumerate(made) if each.mask.any()]
    photographs = [each for each in real if each.category != NORMAL]
    known = [i for i, each in enumerate(defects) if each.mask.any()]
    ours = [defects[i] for i in known]
    of_real = [copies.defects_of(each.x, each.mask) for each in ours]
    nearest = copies.nearest([copies.defects_of(made[i].x, made[i].mask) for i in shown], of_real)
    worst = np.argsort(-nearest.similarity)[:_WORST].tolist()
    found = {
        "threshold": copies.COPY,
        "share_among_real": copies.share_of_copies(of_real),
        "near_copies": int(nearest.copies.sum()),
        "of": len(shown),
        "median_similarity": float(np.median(nearest.similarity)),
        "worst": [
            {
                "synthetic": str(images[shown[i]].path),
                "real": str(photographs[known[int(nearest.index[i])]].path),
                "similarity": float(nearest.similarity[i]),
            }
            for i in worst
        ],
    }
    pairs = []
    for i in worst:
        a, b = made[shown[i]], ours[int(nearest.index[i])]
        windows = fidelity.window_around(a.x, a.mask), fidelity.window_around(b.x, b.mask)
        pairs.append((*windows, float(nearest.similarity[i])))
    return found, pairs


def _agreement(images: Sequence[LabeledImage], on_stage: OnStage) -> dict[str, float] | None:
    """IoU of the masks with what differs from the source, where that is named and still there."""
    ious = []
    for done, each in enumerate(images):
        if done % 50 == 0:
            on_stage("masks", done, len(images))
        if each.source is None or each.mask is None or not each.source.is_file():
            continue
        ground = read_image(each.source)
        image, source = to_model_range(read_image(each.path), value_range(ground)), to_model_range(ground)
        if image.shape[1:] == source.shape[1:]:
            mask = load_mask(each.mask, image.shape[1:])
            ious.append(copies.agreement(image, source, mask))
    if not ious:
        return None
    return {
        "compared": len(ious),
        "median_iou": float(np.median(ious)),
        "below_a_half": float(np.mean(np.array(ious) < 0.5)),
    }


def _downstream(
    train: Sequence[Example],
    made: Sequence[Example],
    test: Sequence[Example],
    classes: int,
    plan: Plan,
    seed: int,
    kept: _ScoreCache,
    on_stage: OnStage,
) -> dict[str, Any]:
    """For each task the scores of each arm, a seed each, and what they say."""
    examples: dict[TrainingSet, list[Example]] = {
        "real": list(train), "traditional": list(train), "synthetic": [*train, *made],
    }  # fmt: skip

    def classification(arm: TrainingSet, own: int, on_step: Callable[[], None]) -> dict[str, Any]:
        network = downstream.train_classifier(examples[arm], classes, plan, own, augment=arm != "real", on_step=on_step)
        return downstream.test_classifier(network, test, plan.device)

    def segmentation(arm: TrainingSet, own: int, on_step: Callable[[], None]) -> dict[str, Any]:
        network = downstream.train_segmenter(examples[arm], plan, own, augment=arm != "real", on_step=on_step)
        return downstream.test_segmenter(network, test, plan.device)

    tasks: dict[str, Callable[[TrainingSet, int, Callable[[], None]], dict[str, Any]]] = {
        "classification": classification,
        "segmentation": segmentation,
    }
    total = (downstream.CLASSIFIER_STEPS + 1) * len(TRAINING_SETS) * plan.seeds * plan.steps
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        if done % 10 == 0:
            on_stage("networks", done, total)

    found: dict[str, Any] = {}
    for task, run in tasks.items():
        scores: dict[TrainingSet, dict[str, list[float]]] = {arm: {} for arm in TRAINING_SETS}
        curves: dict[TrainingSet, list[list[float]]] = {arm: [] for arm in TRAINING_SETS}
        for number in range(plan.seeds):
            own = seed * 1000 + number  # the arms of a seed begin with the same weights: they are a pair
            for arm in TRAINING_SETS:
                before = done
                row = dict(kept.get(f"{task}/{arm}/{own}", lambda arm=arm, own=own, run=run: run(arm, own, on_step)))  # type: ignore[misc]
                done = before + plan.steps * (downstream.CLASSIFIER_STEPS if task == "classification" else 1)
                curves[arm].append(row.pop("curve", []))
                for name, value in row.items():
                    scores[arm].setdefault(name, []).append(value)
        decides = _DECIDES[task]
        # Against the better of the two: what only makes up for an augmentation that harms does not help.
        baselines: tuple[TrainingSet, ...] = ("traditional", "real")
        baseline = max(baselines, key=lambda arm: float(np.mean(scores[arm][decides])))
        verdict = downstream.judge(scores["synthetic"][decides], scores[baseline][decides])
        found[task] = {
            "scores": {arm: downstream.summary(scores[arm]) for arm in TRAINING_SETS},
            "by_seed": scores,
            "decided_by": decides,
            "baseline": baseline,
            "against_baseline": asdict(verdict),
        }
        if any(curves["real"]):
            found[task]["curves"] = {arm: np.mean(curves[arm], axis=0).round(4).tolist() for arm in TRAINING_SETS}
    return found


def _sheets(
    defects: Sequence[Example],
    made: Sequence[Example],
    categories: Sequence[str],
    pairs: Sequence[tuple[FloatArray, FloatArray, float]],
) -> dict[str, Any]:
    """What the report shows: windows of real and of synthetic defects, and the nearest pairs."""
    rows = []
    for label, category in enumerate(categories, start=1):
        for kind, examples in (("real", defects), ("synthetic", made)):
            mine = [each for each in examples if each.label == label and each.mask.any()][:8]
            if mine:
                rows.append((f"{category}, {kind}", _strip(_windows(mine))))
    return {"windows": rows, "pairs": [(_strip(np.stack([a, b])), similarity) for a, b, similarity in pairs]}


def _strip(windows: FloatArray) -> Any:
    """Windows [N, C, S, S] side by side, as 8-bit pixels at twice their size."""
    strip = np.concatenate(list(windows), axis=2).transpose(1, 2, 0)
    pixels = np.clip(np.rint((strip + 1) * 127.5), 0, 255).astype(np.uint8)
    return cv2.resize(pixels, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """What the report comes to, a line a task."""
    lines = []
    for task, of_task in found["downstream"].items():
        against, name, baseline = of_task["against_baseline"], of_task["decided_by"], of_task["baseline"]
        p = "" if against["p"] is None else f", p = {against['p']:.3f}"
        lines.append(
            f"{task}: {against['verdict']} ({name} {of_task['scores']['synthetic'][name]['mean']:.3f} with synthetic "
            f"images, {of_task['scores'][baseline][name]['mean']:.3f} without{p}, {against['seeds']} seeds)"
        )
    return lines
