"""Evaluates whether synthetic data helps: fidelity, near-copies, masks and downstream scores in one report.

Reads only files: real images, datasets, and the manifests that record how the datasets were made.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files, ranks
from defectgen.device import resolve
from defectgen.errors import UsageError
from defectgen.evaluation import copies, fidelity, report
from defectgen.evaluation.data import (
    Example,
    LabeledImage,
    Synthetic,
    load_examples,
    load_mask,
    read_real,
    read_synthetic,
    to_common_channels,
    to_model_range,
)
from defectgen.evaluation.downstream import AUGMENTATIONS, Plan
from defectgen.evaluation.learning import NAMES, Learning, OnStage, ScoreCache
from defectgen.evaluation.networks import Kind
from defectgen.evaluation.splitting import Real, check_sides, remove_test_leakage, separate, split
from defectgen.folders import DEFECT, NORMAL, collapsed
from defectgen.imaging.images import read_image
from defectgen.imaging.mask_files import digests
from defectgen.imaging.windows import BoolArray, FloatArray, common_range, value_range
from defectgen.marking import MASKS, Marking
from defectgen.nn.features import Lite0, extractor
from defectgen.version import __version__

_RESULTS, _REPORT, _PAGE = "results.json", "report.json", "report.html"
_WORST_PAIRS = 6  # pairs that the report shows
_RED = (230, 40, 40)
_ALARM = 6  # pixels from the middle of a false alarm to its outline
_SCORING = 3  # changes with the networks and their scores, so that no report mixes two versions

CutOuts = Callable[[Sequence[LabeledImage], Sequence[LabeledImage], int], list[tuple[FloatArray, BoolArray]]]
"""(defects, normals, number) -> cut-outs of the defects on the normals, with their masks: the yardstick of fidelity."""


@dataclass(frozen=True)
class Extent:
    """The size of an evaluation."""

    steps: int
    seeds: int
    samples: int
    """Maximum number of images with defects, in each dataset and in the real training set."""
    normals: int
    """Maximum number of normals to train on."""
    tested: int
    """Maximum number of real test images; two thirds of them have defects."""

    def of(self, seeds: int | None = None, steps: int | None = None) -> "Extent":
        """The same with another number of seeds or training steps; None keeps it."""
        return replace(self, seeds=seeds or self.seeds, steps=steps or self.steps)


QUICK = Extent(steps=60, seeds=3, samples=200, normals=100, tested=90)
WHOLE = Extent(steps=300, seeds=5, samples=1000, normals=300, tested=240)


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate. `test` is a folder of held-out real images; without it, part of `real` is held out."""

    real: Path
    synthetic: tuple[Path, ...]
    """Datasets. Several are compared in one report."""
    out: Path = Path("report")
    normals: Path | None = None
    marking: Marking = MASKS
    """How the real defects are marked, if not by masks in files."""
    test: Path | None = None
    extent: Extent = WHOLE
    shots: tuple[int | None, ...] = (None,)
    """Numbers of real defects per category to train on, one evaluation each; None means all."""
    share: float | None = None
    """Share of synthetic defects in training, 0..1; None chooses it by cross-validation on the real images."""
    kind: Kind = "fine-tuned"
    reversal: bool = False
    features: Mapping[str, Path] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False
    wait: bool = False
    """Wait for another process that writes to the same folder, instead of raising."""


def evaluate(
    request: EvaluateRequest, on_stage: OnStage = lambda *_: None, cut_outs: CutOuts | None = None
) -> dict[str, Any]:
    """Return the report, and write it as `report.json` and `report.html`. The scores are cached for `resume`.

    Several ranks share the networks.

    Raises:
        BadInputError: folders without the images needed, or test-set leakage: a dataset was made from a test image.
        UsageError: no images to test on, or the report already exists.
        WeightsError: a feature network cannot be used.
    """
    out, device = request.out, resolve(request.device)
    exists = ranks.share(lambda: any((out / name).exists() for name in (_RESULTS, _REPORT, _PAGE)))
    if exists and not request.resume and not request.overwrite:
        raise UsageError(f"{out}: a report already exists; continue with --resume, or replace it with --overwrite")
    for name in (_RESULTS, _REPORT, _PAGE) if ranks.is_main() else ():
        files.sweep(out, name)
    # Loaded first, so that an unusable file fails before the long part.
    networks = {kind: extractor(kind, path, device) for kind, path in request.features.items()}
    found = read(request)
    categories = _categories(found)
    rng = np.random.default_rng(request.seed)
    extent = request.extent
    train = _thinned(found.real.train, extent.samples, extent.normals, rng)
    test = _thinned(found.real.test, extent.tested * 2 // 3, extent.tested // 3, rng)
    made = {name: _thinned(each.images, extent.samples, 0, rng) for name, each in found.datasets.items()}
    if categories == (DEFECT,):
        train, test, made = (
            as_one_category(train),
            as_one_category(test),
            {k: as_one_category(v) for k, v in made.items()},
        )

    limits = common_range([each.path for each in train])
    sets = [
        load_examples(images, categories, synthetic=number > 1, limits=limits)
        for number, images in enumerate((train, test, *made.values()))
    ]
    train_examples, test_examples, *made_examples = to_common_channels(*sets)
    if all(each.mask.all() for each in test_examples if each.label):
        raise UsageError(
            f"{request.test or request.real}: every mask of the test defects covers its whole image; localization "
            "cannot be scored"
        )
    scores = ScoreCache(out / _RESULTS, _identity(request, (*train, *test), made), resume=request.resume)
    datasets: dict[str, Any] = {}
    sheets: dict[str, Any] = {}
    if ranks.is_main():  # while the others begin with the networks
        defects = [each for each in train_examples if each.label]
        figures = fidelity.Figures(device, networks, request.seed)
        yardsticks = _yardsticks(cut_outs, categories, train, len(train_examples[0].x), on_stage)
        labels = {category: label for label, category in enumerate(categories, start=1)}
        measures = {
            category: figures.of_category(of_real, yardsticks.get(category))
            for category, label in labels.items()
            if len(of_real := _of_label(defects, label)) > 1
        }
        memory = _Memory(figures.network, train_examples, train)
        for number, (name, images) in enumerate(made.items()):
            on_stage("fidelity", number, len(made))
            examples, source = made_examples[number], found.datasets[name]
            near, pairs = memory.of(examples, images)
            datasets[name] = {
                "path": str(source.path),
                "counts": counts(images),
                "traceable": source.traceable,
                "made_by_model": source.made_by_model,
                "trained_on_known": source.trained_on_known,
                "fidelity": {
                    category: measure(of_made)
                    for category, measure in measures.items()
                    if len(of_made := _of_label(examples, labels[category])) > 1
                },
                "memorisation": near,
                "mask_agreement": mask_agreement(images),
            }
            sheets[name] = {
                "windows": _window_rows(defects, examples, categories),
                "pairs": [_strip(pair) for pair in pairs],
            }
    learning = Learning(
        Plan(extent.steps, device, request.kind, request.reversal),
        [request.seed * 1000 + number for number in range(extent.seeds)],
        request.share,
        categories,
        train,
        train_examples,
        test_examples,
        dict(zip(made, made_examples, strict=True)),
        {name: each.used for name, each in found.datasets.items()},
        scores,
        on_stage,
    )
    learned = [learning.of(shots) for shots in request.shots]
    alarms = [_name_alarms(of_shots, test, test_examples) for of_shots in learned]
    result: dict[str, Any] = {
        "defectgen": __version__,
        "device": str(device),
        "real": str(request.real),
        "kind": request.kind,
        "extent": asdict(extent),
        "seed": request.seed,
        "counts": {
            "real_train": counts(train), "real_test": counts(test), "left_out_as_near_duplicates": found.left_out,
            "left_out_of_test": found.left_out_of_test,
        },
        "skipped": list(found.skipped),
        "warnings": list(found.warnings),
        "datasets": datasets,
        "downstream": learned,
    }  # fmt: skip
    if ranks.is_main():
        files.write(out / _REPORT, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        report.write(out / _PAGE, result, sheets, alarms)
    return ranks.share(lambda: result)


# --- Inputs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The real images in two parts, and the datasets by name, without near-duplicates of the test images."""

    real: Real
    datasets: dict[str, Synthetic]
    left_out: int
    """Images to train on that are near-duplicates of a test image, or show its defect."""
    left_out_of_test: int
    """Test images that show a defect that a dataset was made from."""
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    """What is odd about the images."""


def read(request: EvaluateRequest) -> Found:
    """Read the inputs of a request. No test image was used to make a dataset.

    Raises:
        BadInputError, UsageError: as `evaluate`.
    """
    source = read_real(request.real, request.normals, marking=request.marking)
    read_all = [read_synthetic(folder) for folder in request.synthetic]
    images, skipped = source.images, [*source.skipped, *(text for each in read_all for text in each.skipped)]
    warnings = [*source.warnings, *(text for each in read_all for text in each.warnings)]
    left_out_of_test = 0
    if request.test is None:
        together = Synthetic(
            tuple(image for each in read_all for image in each.images),
            frozenset().union(*(each.seen for each in read_all)),
        )
        real = split(images, together, request.seed)
    else:
        held_out = read_real(request.test, marking=request.marking, apart=True)
        skipped += held_out.skipped
        warnings += held_out.warnings
        real = separate(images, held_out.images, frozenset().union(*(each.used for each in read_all)))
        check_sides(real)
        left_out_of_test = len(held_out.images) - len(real.test)
    kept = [remove_test_leakage(each, real.test) for each in read_all]
    left_out = sum(len(a.images) - len(b.images) for a, b in zip(read_all, kept, strict=True))
    left_out += len(images) - len(real.train) if request.test else 0
    names = _names(request.synthetic)
    datasets = {
        name: replace(each, path=folder) for name, each, folder in zip(names, kept, request.synthetic, strict=True)
    }
    return Found(real, datasets, left_out, left_out_of_test, tuple(skipped), tuple(dict.fromkeys(warnings)))


def _names(folders: Sequence[Path]) -> list[str]:
    """Names of the datasets: the folder names, or the absolute paths where a folder name is ambiguous or reserved."""
    short = [folder.resolve().name for folder in folders]
    taken = {*AUGMENTATIONS, *(f"{name} alone" for name in short)}
    return [
        name if short.count(name) == 1 and name not in taken else str(folder.resolve())
        for name, folder in zip(short, folders, strict=True)
    ]


def _categories(found: Found) -> tuple[str, ...]:
    """The categories of the real training set; a single one if the test or a dataset has others."""
    known = sorted({each.category for each in found.real.train} - {NORMAL})
    others = [image for each in found.datasets.values() for image in each.images]
    unknown = {each.category for each in (*found.real.test, *others)} - {NORMAL, *known}
    return (DEFECT,) if unknown else tuple(known)


def as_one_category(images: Sequence[LabeledImage]) -> tuple[LabeledImage, ...]:
    """The images with all defects in the category `DEFECT`."""
    return tuple(replace(image, category=collapsed(image.category)) for image in images)


def _thinned(
    images: Sequence[LabeledImage], defects: int, normals: int, rng: np.random.Generator
) -> tuple[LabeledImage, ...]:
    """At most `defects` images with defects, the same number for each category, and at most `normals` normals."""
    categories = sorted({each.category for each in images})
    of_each = max(defects // max(len(set(categories) - {NORMAL}), 1), 1)
    chosen: set[int] = set()
    for category in categories:
        mine = [i for i, each in enumerate(images) if each.category == category]
        chosen.update(rng.permutation(mine)[: normals if category == NORMAL else of_each].tolist())
    return tuple(each for i, each in enumerate(images) if i in chosen)


def counts(images: Sequence[LabeledImage]) -> dict[str, int]:
    """The number of images of each category."""
    names = [each.category for each in images]
    return {name: names.count(name) for name in sorted(set(names))}


def _identity(
    request: EvaluateRequest, real: Sequence[LabeledImage], made: Mapping[str, Sequence[LabeledImage]]
) -> str:
    """A hash of everything that the scores depend on; `--resume` accepts only scores with the same hash."""
    images = (*real, *(image for each in made.values() for image in each))
    masks = [None if each.mask is None else "+".join(digests(each.mask)) for each in images]
    parts = [(each.sha256, mask, each.category) for each, mask in zip(images, masks, strict=True)]
    how = [_SCORING, asdict(request.extent), request.seed, request.kind, request.reversal, request.share, list(made)]
    return hashlib.sha256(json.dumps([how, parts]).encode()).hexdigest()


# --- Windows, copies, masks ------------------------------------------------------------------------------------


def _of_label(examples: Sequence[Example], label: int) -> list[Example]:
    return [each for each in examples if each.label == label and each.mask.any()]


def _yardsticks(
    cut_outs: CutOuts | None,
    categories: Sequence[str],
    train: Sequence[LabeledImage],
    channels: int,
    on_stage: OnStage,
) -> dict[str, FloatArray]:
    """For each category, windows around cut-outs of the real defects on real normals, [N, channels, 64, 64]."""
    found: dict[str, FloatArray] = {}
    normals = [each for each in train if each.category == NORMAL]
    for done, category in enumerate(categories if cut_outs is not None else ()):
        on_stage("cut-outs", done, len(categories))
        mine = [each for each in train if each.category == category and each.mask is not None]
        assert cut_outs is not None
        pairs = cut_outs(mine, normals, min(max(2 * len(mine), 20), 100)) if mine else []
        if len(pairs) > 1:
            common = [(x if len(x) == channels else x.mean(axis=0, keepdims=True), mask) for x, mask in pairs]
            found[category] = np.stack([fidelity.window_around(x, mask) for x, mask in common])
    return found


class _Memory:
    """The real defects that samples may copy."""

    def __init__(self, network: Lite0, examples: Sequence[Example], images: Sequence[LabeledImage]) -> None:
        known = [(e, image) for e, image in zip(examples, images, strict=True) if e.label and e.mask.any()]
        self._examples, self._paths = [e for e, _ in known], [image.path for _, image in known]
        self._gallery = copies.Gallery(network, [(each.x, each.mask) for each in self._examples])
        self._share = self._gallery.share_of_copies

    def of(
        self, made: Sequence[Example], images: Sequence[LabeledImage]
    ) -> tuple[dict[str, Any], list[tuple[Example, Example]]]:
        """The number of near-copies with the paths of the nearest pairs, and these pairs, the synthetic one first."""
        shown = [(e, image.path) for e, image in zip(made, images, strict=True) if e.mask.any()]
        nearest = self._gallery.nearest((each.x, each.mask) for each, _ in shown)
        pairs, worst = [], []
        for i in np.argsort(-nearest.similarity)[:_WORST_PAIRS].tolist():
            (copy, path), original = shown[i], int(nearest.index[i])
            similarity = float(nearest.similarity[i])
            worst.append({"synthetic": str(path), "real": str(self._paths[original]), "similarity": similarity})
            pairs.append((copy, self._examples[original]))
        found = {
            "threshold": copies.COPY,
            "share_among_real": self._share,
            "near_copies": int(nearest.copies.sum()),
            "of": len(shown),
            "median_similarity": float(np.median(nearest.similarity)),
            "worst": worst,
        }
        return found, pairs


def mask_agreement(images: Sequence[LabeledImage]) -> dict[str, float] | None:
    """IoU of the masks with the pixels that differ from the source image; None if no source image is available."""
    ious = []
    for each in images:
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


def _window_rows(
    defects: Sequence[Example], made: Sequence[Example], categories: Sequence[str]
) -> list[tuple[str, Any]]:
    """Rows of windows around real and synthetic defects, with captions."""
    rows = []
    for label, category in enumerate(categories, start=1):
        for kind, examples in (("real", defects), ("synthetic", made)):
            mine = _of_label(examples, label)[:8]
            if mine:
                rows.append((f"{category}, {kind}", _strip(mine)))
    return rows


def _strip(examples: Sequence[Example]) -> NDArray[np.uint8]:
    """Windows around defects, as of `_outlined`."""
    masks = [fidelity.window_around(each.mask[None].astype(np.float32), each.mask)[0] for each in examples]
    return _outlined(list(fidelity.windows_around(examples)), masks)


def _outlined(windows: Sequence[FloatArray], masks: Sequence[FloatArray]) -> NDArray[np.uint8]:
    """Windows [C, S, S] side by side at twice their size, and below the same with outlines, [H, W, 3]."""
    joined = np.concatenate(windows, axis=2).transpose(1, 2, 0)
    pixels = np.clip(np.rint((joined + 1) * 127.5), 0, 255).astype(np.uint8)
    plain = np.asarray(cv2.resize(pixels, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)
    plain = np.ascontiguousarray(np.broadcast_to(np.atleast_3d(plain), (*plain.shape[:2], 3)))
    inside = np.asarray(cv2.resize(np.concatenate(masks, axis=1), None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR))
    marked = (inside > 0.5).astype(np.uint8)
    outlined = plain.copy()
    outlined[cv2.dilate(marked, np.ones((3, 3), np.uint8)) > marked] = _RED
    return np.concatenate([plain, outlined])


def _name_alarms(
    of_shots: dict[str, Any], test: Sequence[LabeledImage], examples: Sequence[Example]
) -> dict[str, NDArray[np.uint8]]:
    """Replace the indices of false alarms by names of files. Returns their windows, without datasets and with each."""
    strips = {}
    for name, of in of_shots["sets"].items():
        found = of["alarms"]
        of["alarms"] = [str(test[i].path) for i, *_ in found]
        if name == of_shots["augmentation"] or name in of_shots["datasets"]:
            windows = [_around(examples[i].x, y, x) for i, y, x, _ in found]
            strips[name] = _outlined([window for window, _ in windows], [mask for _, mask in windows])
    return strips


def _around(image: FloatArray, y: int, x: int) -> tuple[FloatArray, FloatArray]:
    """A window inside an image, [C, S, S], near a pixel, and where that is, [S, S]; a small image is mirrored."""
    side = fidelity.WINDOW
    mask = np.zeros(image.shape[1:], np.float32)
    mask[max(0, y - _ALARM) : y + _ALARM + 1, max(0, x - _ALARM) : x + _ALARM + 1] = 1
    height, width = (max(side, length) for length in image.shape[1:])
    missing = [(0, height - image.shape[1]), (0, width - image.shape[2])]
    top, left = min(max(0, y - side // 2), height - side), min(max(0, x - side // 2), width - side)
    there = slice(top, top + side), slice(left, left + side)
    whole = np.pad(image, [(0, 0), *missing], mode="symmetric")
    return whole[(slice(None), *there)], np.pad(mask, missing)[there]


# --- Verdicts ----------------------------------------------------------------------------------------------------


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """The verdicts as lines of text: one for each dataset, number of shots and task, followed by the reasons."""
    lines = []
    for of_shots in found["downstream"]:
        shots = "all real defects" if of_shots["shots"] is None else f"{of_shots['shots']} shots"
        for name, answer in of_shots["datasets"].items():
            for task, of_task in answer["tasks"].items():
                metric = of_task["decided_by"]
                before = of_shots["sets"][of_shots["augmentation"]]["scores"][metric]["mean"]
                if answer["share"] == 0:
                    lines.append(
                        f"{name}, {shots}, {task}: {of_task['verdict']} ({NAMES[metric]} {before:.3f} without)"
                    )
                    continue
                after = of_shots["sets"][name]["scores"][metric]["mean"]
                seeds = "1 seed" if of_task["seeds"] == 1 else f"{of_task['seeds']} seeds"
                reach = "" if of_task["low"] is None else f", gain {of_task['low']:+.3f} to {of_task['high']:+.3f}"
                lines.append(
                    f"{name}, {shots}, {task}: {of_task['verdict']} ({NAMES[metric]} {after:.3f} with it, {before:.3f} "
                    f"without{reach}, {seeds}, {answer['share']:.0%} of the defects)"
                )
            lines += [f"  {reason}" for reason in answer["reasons"]]
            if "note" in answer:
                lines.append(f"  {answer['note']}")
    return lines
