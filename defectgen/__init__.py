"""defectgen: labelled defect images for inspection models.

What the command line does, a program can do: each command is a request and a function.

- `train(TrainRequest)` -> `TrainResult`: a model from normals and defects.
- `synthesize(SynthesizeRequest)`, `transfer(TransferRequest)`, `compose(ComposeRequest)` -> an iterable of `Sample`.
- `inspect(InspectRequest)` -> an iterable of what was found on each image.
- `review(ReviewRequest)` -> `ReviewResult`: a page on which people accept and reject the samples of a dataset.
- `evaluate(EvaluateRequest)` -> `EvaluateResult`: whether a dataset helps.
- `write(job, DatasetRequest)`: samples as a dataset folder, of a request that `prepare_synthesis`,
  `prepare_transfer` or `prepare_composition` took.
- `read_catalog`, `load_model`: what these start from.

Importing this loads neither PyTorch nor OpenCV; each name is imported when it is used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from defectgen.version import __version__

# OpenCV reads it once, when it loads; what is wrong with a file stands in our own message.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


if TYPE_CHECKING:
    from defectgen.dataset import Layout, LayoutOptions, Sample
    from defectgen.evaluation import EvaluateRequest
    from defectgen.folders import ProductFolders, read_catalog
    from defectgen.imaging.windows import Box
    from defectgen.marking import Marking
    from defectgen.models.model import Model, load_model
    from defectgen.pipelines.evaluate import EvaluateResult, evaluate
    from defectgen.pipelines.inspect import InspectRequest, inspect
    from defectgen.pipelines.review import ReviewRequest, ReviewResult, review
    from defectgen.pipelines.synthesize import (
        ComposeRequest,
        DatasetRequest,
        DatasetResult,
        SynthesizeRequest,
        TransferRequest,
        compose,
        prepare_composition,
        prepare_synthesis,
        prepare_transfer,
        synthesize,
        transfer,
        write,
    )
    from defectgen.pipelines.train import TrainRequest, TrainResult, train
    from defectgen.synthesis.pasted import Placement, Region

_HOME = {
    name: module
    for module, names in {
        "dataset": "Layout LayoutOptions Sample",
        "evaluation": "EvaluateRequest",
        "folders": "ProductFolders read_catalog",
        "imaging.windows": "Box",
        "marking": "Marking",
        "models.model": "Model load_model",
        "pipelines.evaluate": "EvaluateResult evaluate",
        "pipelines.inspect": "InspectRequest inspect",
        "pipelines.review": "ReviewRequest ReviewResult review",
        "pipelines.synthesize": "ComposeRequest DatasetRequest DatasetResult SynthesizeRequest TransferRequest compose "
        "prepare_composition prepare_synthesis prepare_transfer synthesize transfer write",
        "pipelines.train": "TrainRequest TrainResult train",
        "synthesis.pasted": "Placement Region",
    }.items()
    for name in names.split()
}

__all__ = [
    "Box", "ComposeRequest", "DatasetRequest", "DatasetResult", "EvaluateRequest", "EvaluateResult",
    "InspectRequest", "Layout", "LayoutOptions", "Marking", "Model", "Placement", "ProductFolders", "Region",
    "ReviewRequest", "ReviewResult", "Sample", "SynthesizeRequest", "TrainRequest", "TrainResult", "TransferRequest",
    "__version__", "compose", "evaluate", "inspect", "load_model", "prepare_composition", "prepare_synthesis",
    "prepare_transfer", "read_catalog", "review", "synthesize", "train", "transfer", "write",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'defectgen' has no attribute {name!r}")
    return getattr(import_module(f"defectgen.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
