"""What a training starts from: initial weights, or those of a trained model (`--init`).

A model holds the networks that generate. If its run folder still holds the checkpoint that the model was made from, the
discriminators come from there. Otherwise they are fresh, and train alone for a while (`alone`): a discriminator that
knows nothing would drive a generator away from what it can.

What else a model keeps (banks of real windows, masks, scales) belongs to its images, and is learned anew.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defectgen import files
from defectgen.errors import UsageError
from defectgen.methods.base import Initializable, Method, MethodConfig, Staged, Task
from defectgen.methods.networks import flatten, unflatten
from defectgen.models import checkpoint, registry
from defectgen.models.model import Model, build, load
from defectgen.nn.slots import Names, carried
from defectgen.text import recorded
from defectgen.training.run import CHECKPOINT, CONFIG, TrainSpec

_ALONE = 0.03
"""The part of a stage in which fresh discriminators train alone."""

Record = dict[str, Any]
"""What a run records of the model that it started from: its name, its SHA-256, whether discriminators are fresh."""


@dataclass(frozen=True)
class Started:
    """How a run starts. `trained_on` are the SHA-256 of the images that the model was trained on."""

    record: Record | None = None
    trained_on: Sequence[str] = ()

    def alone(self, config: MethodConfig, progress: float, backbone_part: float) -> bool:
        """Whether only discriminators train at this progress.

        Args:
            backbone_part: the part of the run that is the first stage; 0 for methods with one stage.
        """
        if self.record is None or not self.record["fresh"] or not config.judged_at_once:
            return False
        first, last = (0.0, backbone_part) if progress < backbone_part else (backbone_part, 1.0)
        return progress < first + _ALONE * (last - first)


def start(request: TrainSpec, method: Method) -> Started:
    """Give `method` the weights of `request.init`. Does nothing for a run that resumes from a checkpoint.

    Raises:
        UsageError: the model does not fit, or a resumed run started from another one.
        WeightsError: a file is missing or damaged.
    """
    if request.resume and (started := _recorded(request)) is not None:
        return started
    if request.init is None:
        return Started()
    model = load(request.init.file, torch.device("cpu"))
    named = f"--init {request.init.name}"
    if model.info.name != request.method:
        raise UsageError(f"{named}: a model of {model.info.name}, but this run trains {request.method}")
    if not isinstance(method, Initializable):
        raise UsageError(f"{named}: {request.method} always starts from initial weights")
    if not model.trained_on:
        raise UsageError(f"{named}: does not say which images it was trained on; train it again")
    slots, before, now = method.slots, names_of(model.task), names_of(method.task)

    def given(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return carried(tensors, slots, before, now)

    tensors = given(_learned(model.method))
    if (why := _difference(model, method, tensors)) is not None:
        raise UsageError(f"{named}: does not fit: {why}")
    for name, module in method.networks.averaged.items():
        if _learns(module):
            module.load_state_dict(unflatten(name, tensors))
    fresh = not _take_others(request.init.file, model.method, method, given)
    record = {"model": recorded(request.init.name), "sha256": files.sha256(request.init.file), "fresh": fresh}
    return Started(record, model.trained_on)


def _recorded(request: TrainSpec) -> Started | None:
    """How the run to resume started; None if it did not start from a model, or starts again."""
    try:
        saved = json.loads((request.run / CONFIG).read_bytes())
        record, trained_on = dict(saved["init"]), list(saved["trained_on"])
        name, sha256 = str(record["model"]), str(record["sha256"])
        record["fresh"] = bool(record["fresh"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if request.init is not None and files.sha256(request.init.file) != sha256:
        raise UsageError(
            f"--init {request.init.name}: cannot resume, {request.run} started from the model {name}, or this model "
            "has changed since; leave out --init, or restart with --overwrite"
        )
    if (request.run / CHECKPOINT).exists():
        return Started(record, trained_on)
    if request.init is None:
        raise UsageError(f"{request.run}: no checkpoint to resume; start again with --init {name}")
    return None


def _take_others(
    file: Path, old: Method, method: Method, given: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> bool:
    """Load the discriminators that trained the model in `file`, as far as there are any. Returns whether all are."""
    others = {name: module for name, module in method.networks.modules.items() if name not in old.networks.averaged}
    taken: set[str] = set()
    path = file.with_name(CHECKPOINT)
    if path.is_file():
        tensors, _ = checkpoint.load(path)
        if _same(unflatten("average", tensors), _learned(old)):
            carried_over = given(unflatten("training", tensors))
            for name, module in others.items():
                of_module = unflatten(name, carried_over)
                if _shapes(of_module) == _shapes(module.state_dict()):
                    module.load_state_dict(of_module)
                    taken.add(name)
    path = file.with_name(registry.BACKBONE)
    if isinstance(method, Staged) and path.is_file():
        tensors, _ = checkpoint.load(path)
        carried_over = given(tensors)
        ours = _same({**_learned(old), **tensors}, _learned(old))
        if ours and _shapes(carried_over).items() <= _shapes(method.backbone()).items():
            method.take_backbone(carried_over)
            taken |= {name for name in others if unflatten(name, tensors)}
    learning = {name for name, module in others.items() if any(each.requires_grad for each in module.parameters())}
    return taken >= learning


def _difference(model: Model, method: Method, tensors: Mapping[str, Tensor]) -> str | None:
    """Why tensors of a model, carried over, do not fit `method`; None if they do."""
    if model.task.elongated != method.task.elongated:
        return f"its defects are {'' if model.task.elongated else 'not '}elongated, those of this run are otherwise"
    if _shapes(tensors) == _shapes(_learned(method)):
        return None
    before, now = model.method.config.model_dump(mode="json"), method.config.model_dump(mode="json")
    different = [
        f"{key} {before[key]} instead of {now[key]}"
        for key in now
        if before.get(key) != now[key] and _shapes_networks(model, key, now[key])
    ]
    return f"it has {', '.join(different) or 'other networks'}; train with the --preset and --set of the model"


def _shapes_networks(model: Model, key: str, value: Any) -> bool:
    """Whether the model's networks would have other shapes with another value of a setting."""
    config = model.method.config.model_copy(update={key: value})
    try:
        other = build(model.info.name, config, model.task, torch.device("cpu"), 0)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):  # fits only with other settings
        return True
    return _shapes(_learned(other)) != _shapes(_learned(model.method))


def names_of(task: Task) -> Names:
    """What the parts of a model's tensors belong to."""
    channels = [f"{i} of {task.channels}" for i in range(task.channels)]
    return {
        "domains": task.domains, "categories": task.domains[1:], "products": task.products,
        "inputs": channels, "outputs": channels,
    }  # fmt: skip


def _learned(method: Method) -> dict[str, Tensor]:
    """The tensors of the networks that generate, without the modules that only keep data."""
    learned = {name: module for name, module in method.networks.averaged.items() if _learns(module)}
    return {key: value for name, module in learned.items() for key, value in flatten(name, module).items()}


def _learns(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _same(tensors: Mapping[str, Tensor], of_model: Mapping[str, Tensor]) -> bool:
    """Whether the tensors include those of the model, to the bit."""
    return all(name in tensors and torch.equal(tensors[name], value) for name, value in of_model.items())
