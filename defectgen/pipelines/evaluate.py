"""Does a dataset help? Real images and a dataset in, a report out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectgen import evaluation
from defectgen.evaluation import QUICK, WHOLE, EvaluateRequest
from defectgen.evaluation.downstream import TRAINING_SETS

OnStage = Callable[[str, int, int], None]

__all__ = ["QUICK", "WHOLE", "EvaluateRequest", "EvaluateResult", "evaluate", "plan"]


@dataclass(frozen=True)
class EvaluateResult:
    """What came out. `found` is what stands in `report.json`."""

    report: Path
    """The page to look at."""
    found: Mapping[str, Any]
    verdicts: tuple[str, ...]
    """A line a task, and one on copies."""
    warnings: tuple[str, ...]
    """What could not be checked."""
    skipped: tuple[str, ...]


def evaluate(request: EvaluateRequest, on_stage: OnStage = lambda *_: None) -> EvaluateResult:
    """Train the same networks without and with a dataset, test them on real images that it was not made of.

    Also measures fidelity, near-copies and masks; writes `OUT/report.html` and `OUT/report.json`.

    >>> import defectgen
    >>> from pathlib import Path
    >>> from defectgen.pipelines.evaluate import QUICK
    >>> extent = QUICK.of(seeds=1, steps=2)  # far too few to tell anything, but fast
    >>> request = defectgen.EvaluateRequest(real=Path("real"), synthetic=Path("made/defects"), extent=extent)
    >>> result = defectgen.evaluate(request)
    >>> len(result.verdicts), result.report.is_file()
    (3, True)

    Args:
        on_stage: called with what is being done, and how much of it of how much.

    Raises:
        BadInputError: folders without what is needed, or a test image that the dataset was made of.
        UsageError: nothing left to test on, or a report that is there already.
        WeightsError: a feature network that cannot be used.
    """
    found = evaluation.evaluate(request, on_stage)
    copies, synthetic = found["memorisation"], request.synthetic
    warnings = []
    if not found["traceable"]:
        warnings.append(f"{synthetic}: does not say what it was made of: that no test image is in it is unchecked")
    elif not found["trained_on_known"] and found["made_by_model"]:
        warnings.append(f"{synthetic}: does not say what its model was trained on; was it the test images?")
    near = f"{copies['near_copies']} of {copies['of']} synthetic defects are near-copies of real ones"
    return EvaluateResult(
        report=request.out / "report.html",
        found=found,
        verdicts=(*evaluation.verdicts(found), near),
        warnings=tuple(warnings),
        skipped=tuple(found["skipped"]),
    )


def plan(request: EvaluateRequest) -> dict[str, Any]:
    """What would be done, for people: counts of images, networks and steps. Reads all images, trains nothing."""
    real, synthetic, left_out, skipped = evaluation.read(request)
    return {
        "real_train": evaluation.counts(real.train),
        "real_test": evaluation.counts(real.test),
        "synthetic": evaluation.counts(synthetic.images),
        "left_out_as_near_duplicates": left_out,
        "skipped": len(skipped),
        "networks": 2 * len(TRAINING_SETS) * request.extent.seeds,
        "steps_of_each": request.extent.steps,
        "out": str(request.out),
    }
