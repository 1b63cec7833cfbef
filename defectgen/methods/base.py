"""What a method is to the rest of defectgen: the protocol, and the records that pass through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from defectgen.errors import UsageError

ANCHOR = 0
"""The index of the domain of the normals."""


class Task(BaseModel):
    """What the photographs decide about a model.

    `domains` are the normals, first, and the defect categories; `scales` tells for each product and category by
    how much its photographs are scaled down before windows are taken (1 or less).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: tuple[str, ...]
    products: tuple[str, ...]
    channels: int
    scales: dict[str, dict[str, float]]
    shapes: dict[str, tuple[tuple[float, float], ...]] = {}


class MethodConfig(BaseModel):
    """The hyperparameters that every method has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)
    """What `image_size` may be."""

    image_size: int = Field(128, description="side of the window, in pixels: 32, 64, 128 or 256")
    batch_size: int = Field(8, ge=1)
    steps: int = Field(100_000, ge=1)
    ema: float = Field(0.999, ge=0, lt=1)

    @field_validator("image_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value not in cls.sizes:
            *others, last = cls.sizes
            raise ValueError(f"should be {', '.join(map(str, others))} or {last}")
        return value


@dataclass(frozen=True)
class Needs:
    """What a method cannot do without in its training data."""

    masks: bool
    normals: bool
    defects: bool


Learns = Literal["domains", "pairs", "labels", "masks", "contents"]
"""What a method learns: windows of any domain, each with one of its target domain; a normal window and a defective
one at the same scale, whatever the category; the same with all the categories of the defective one, and where they
are; windows with their masks, to make whole images; or defect contents on a pure background, to make such."""


@dataclass(frozen=True)
class Batch:
    """Windows for one training step: sources, and references of the target domains; a row is at one scale.

    Images are [B, C, H, W] in [-1, 1]; domains and products are indices into the task's, [B]. `a_ref`,
    [B, domains - 1, H, W], is 1 where a reference shows a category, or may show it; for methods that learn labels.
    """

    x: Tensor
    y: Tensor
    p: Tensor
    x_ref: Tensor
    y_ref: Tensor
    p_ref: Tensor
    a_ref: Tensor | None = None


@dataclass(frozen=True)
class GenerateBatch:
    """Normal windows x, [B, C, H, W] in [-1, 1], the domains wanted, [B], and a CPU generator for each row.

    `mix`, [B, domains - 1], are the weights of the defect categories in place of `y`, where a method can mix or
    unite them; `a`, [B, domains - 1, H, W], tells the same for each place, where a method can be told. `x_ref` and
    `x_style`, like x, show the defects to take, and others whose style they shall have, where a method can be guided
    by references (`Guided`); what is None is drawn.
    """

    x: Tensor
    y: Tensor
    rngs: Sequence[torch.Generator]
    mix: Tensor | None = None
    a: Tensor | None = None
    x_ref: Tensor | None = None
    x_style: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """Windows [B, C, H, W] in [-1, 1], and soft masks [B, 1, H, W] in [0, 1] where the method draws its own.

    `normal` are the same windows without their defects, of methods that make whole images.
    """

    x: Tensor
    mask: Tensor | None = None
    normal: Tensor | None = None


class Method(Protocol):
    """A generator of defects. Tensors come and go on the device that it was built on."""

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    needs: ClassVar[Needs]
    learns: ClassVar[Learns]

    def __init__(self, config: Any, task: Task, device: torch.device) -> None: ...

    @property
    def config(self) -> MethodConfig: ...

    @property
    def task(self) -> Task: ...

    def training_step(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Update every network once; returns the losses by name, detached. All chance comes from `rng` (CPU)."""
        ...

    def generate(self, request: GenerateBatch) -> Generated: ...

    def averaged(self) -> Mapping[str, nn.Module]:
        """The networks that generating needs: the trainer averages them over the steps, and saves the average."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on training exactly as if it had never stopped."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Staged(Protocol):
    """A method that trains a backbone first, which other defects can share, and then what makes the defects."""

    @property
    def backbone_steps(self) -> int:
        """The step at which the first stage ends."""
        ...

    def backbone(self) -> dict[str, Tensor]:
        """What the second stage needs of the first."""
        ...

    def take_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin the second stage with what `backbone` gave, of this model or another of the same widths."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A method whose losses tell when a training goes wrong in a way that it knows."""

    def trouble(self, losses: Mapping[str, float]) -> str | None:
        """What goes wrong and what to do, of losses averaged over some 200 steps; None if nothing does."""
        ...


@runtime_checkable
class Guided(Protocol):
    """A method whose `generate` takes defects, or their styles, from references."""

    guided: ClassVar[Literal[True]]


@runtime_checkable
class Restorer(Protocol):
    """A method that can paint over what it painted."""

    def restore(self, x: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Defective windows, [B, C, H, W] in [-1, 1], with their defects painted over; a CPU generator for each."""
        ...


def configure(method: type[Method], preset: str, settings: Mapping[str, str]) -> MethodConfig:
    """The configuration of a preset with `--set key=value` laid over it.

    Raises:
        UsageError: an unknown preset or key, or a bad value, with those allowed.
    """
    if preset not in method.presets:
        raise UsageError(f"--preset {preset}: {method.name} has {', '.join(method.presets)}")
    fields = method.Config.model_fields
    for key in settings:
        if key not in fields:
            raise UsageError(f"--set {key}: not a setting of {method.name}; it has {', '.join(sorted(fields))}")
    try:
        return method.Config.model_validate({**method.presets[preset], **settings})
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # no one setting is to blame
            raise UsageError(f"--set: {first['msg']}") from error
        key = str(first["loc"][0])
        raise UsageError(f"--set {key}: {first['msg']} ({fields[key].description})") from error


def flatten(name: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors under `name.`."""
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def unflatten(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `name.`, without it."""
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def optimizer_state(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's tensors under `name.`: what it remembers of each parameter, by the parameter's number."""
    state = optimizer.state_dict()["state"]
    return {f"{name}.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def load_optimizer_state(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_state`; the learning rates stay as they were built."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in unflatten(name, tensors).items():
        index, entry = key.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def training_state(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """`Method.state` of networks and their optimisers, by name."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= flatten(name, module)
    for name, optimizer in optimizers.items():
        tensors |= optimizer_state(f"adam-{name}", optimizer)
    return tensors


def load_training_state(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], state: Mapping[str, Tensor]
) -> None:
    """The reverse of `training_state`."""
    for name, module in modules.items():
        module.load_state_dict(unflatten(name, state))
    for name, optimizer in optimizers.items():
        load_optimizer_state(f"adam-{name}", optimizer, state)


def begin_step(optimizers: Mapping[str, torch.optim.Optimizer], lr: float) -> None:
    """Forget the gradients of the step before, and set the learning rate of this one."""
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            group["lr"] = lr
