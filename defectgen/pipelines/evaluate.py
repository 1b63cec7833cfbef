"""Evaluate whether a dataset helps: real images and a dataset in, a report out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from defectgen import evaluation, files, ranks
from defectgen.evaluation import QUICK, WHOLE, EvaluateRequest
from defectgen.evaluation.data import LabeledImage, resize_mask, to_model_range
from defectgen.evaluation.downstream import AUGMENTATIONS
from defectgen.folders import Catalog, SourceImage
from defectgen.imaging.images import DecodedImage, read_image
from defectgen.imaging.windows import BoolArray, FloatArray, value_range
from defectgen.synthesis import pasted
from defectgen.synthesis.stream import SampleSpec

OnStage = Callable[[str, int, int], None]

__all__ = ["QUICK", "WHOLE", "EvaluateRequest", "EvaluateResult", "evaluate", "plan"]


@dataclass(frozen=True)
class EvaluateResult:
    """The result of an evaluation. `found` is the content of `report.json`."""

    report: Path
    """The HTML page."""
    found: Mapping[str, Any]
    verdicts: tuple[str, ...]
    """Lines for people: for each dataset whether it helps, why, and how many of its defects are near-copies."""
    warnings: tuple[str, ...]
    """What is odd about the images, and the checks that were not possible."""
    skipped: tuple[str, ...]


def evaluate(request: EvaluateRequest, on_stage: OnStage = lambda *_: None) -> EvaluateResult:
    """Train the same networks without and with a dataset, and test them on held-out real images.

    Also measures fidelity, near-copies and masks. Writes `OUT/report.html` and `OUT/report.json`.

    >>> import defectgen
    >>> from pathlib import Path
    >>> from defectgen.pipelines.evaluate import QUICK
    >>> extent = QUICK.of(seeds=1, steps=2)  # far too few to tell anything, but fast
    >>> request = defectgen.EvaluateRequest(real=Path("real"), synthetic=(Path("made/defects"),), extent=extent)
    >>> result = defectgen.evaluate(request)
    >>> result.verdicts[-1].endswith("are near-copies of real ones"), result.report.is_file()
    (True, True)

    Args:
        on_stage: called with the current stage, the units of it that are done, and their total.

    Raises:
        BadInputError: folders without the images needed, or test-set leakage: the dataset was made from a test image.
        UsageError: no images to test on, the report already exists or cannot be written, or another process writes it.
        WeightsError: the feature network cannot be used.
    """
    with files.locked(request.out, wait=request.wait) if ranks.is_main() else nullcontext():
        found = evaluation.evaluate(request, on_stage, _cut_outs)
    lines, warnings = list(evaluation.verdicts(found)), list(found["warnings"])
    for name, of in found["datasets"].items():
        if not of["traceable"]:
            warnings.append(f"{of['path']}: does not record its source images; test-set leakage cannot be checked")
        elif not of["trained_on_known"] and of["made_by_model"]:
            warnings.append(f"{of['path']}: does not say what its model was trained on; test-set leakage is possible")
        copies = of["memorisation"]
        lines.append(
            f"{name}: {copies['near_copies']} of {copies['of']} synthetic defects are near-copies of real ones"
        )
    return EvaluateResult(
        report=request.out / "report.html",
        found=found,
        verdicts=tuple(lines),
        warnings=tuple(warnings),
        skipped=tuple(found["skipped"]),
    )


def plan(request: EvaluateRequest) -> dict[str, Any]:
    """Counts of images, networks and steps, for people. Reads all images, trains nothing."""
    found = evaluation.read(request)
    sets = len(AUGMENTATIONS) + 2 * len(found.datasets)
    return {
        "real_train": evaluation.counts(found.real.train),
        "real_test": evaluation.counts(found.real.test),
        "synthetic": {name: evaluation.counts(each.images) for name, each in found.datasets.items()},
        "left_out_as_near_duplicates": found.left_out,
        "skipped": len(found.skipped),
        **({"warnings": list(found.warnings)} if found.warnings else {}),
        "shots": ["all" if shots is None else shots for shots in request.shots],
        "networks": sets * request.extent.seeds * len(request.shots),
        "steps_of_each": request.extent.steps,
        "out": str(request.out),
    }


def _cut_outs(
    defects: Sequence[LabeledImage], normals: Sequence[LabeledImage], num: int
) -> list[tuple[FloatArray, BoolArray]]:
    """Cut-outs of real defects of one category on normals, as `compose` makes them, with their masks."""

    spec = SampleSpec((defects[0].category,), num, _catalog(normals))
    made = []
    for sample in pasted.compose(pasted.ComposeRequest(spec, _catalog(defects), "cut-outs")):
        source = read_image(Path(str(sample.provenance.source)))
        x = to_model_range(DecodedImage(sample.image), value_range(source))
        mask = resize_mask(sample.mask, (x.shape[1], x.shape[2]))
        if mask.any():
            made.append((x, mask))
    return made


def _catalog(images: Sequence[LabeledImage]) -> Catalog:
    return Catalog(images=tuple(map(_source_image, images)), skipped=())


@lru_cache(maxsize=4096)
def _source_image(image: LabeledImage) -> SourceImage:
    """An image as a catalog has it; each is decoded once, not for each category again."""
    decoded = read_image(image.path)
    return SourceImage(
        path=image.path, mask=image.mask, category=image.category, product="real",
        height=decoded.height, width=decoded.width, channels=decoded.channels, depth=decoded.depth,
    )  # fmt: skip
