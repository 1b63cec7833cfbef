"""What a method is to the rest of defectgen: the protocol, and the records that pass through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from defectgen.methods.networks import Networks

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
    """A generator of defects. Tensors come and go on the device that it was built on.

    What it learns, makes and can be told stands in its row of `defectgen.methods.BUILT_IN`.
    """

    Config: ClassVar[type[MethodConfig]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    networks: Networks

    def __init__(self, config: Any, task: Task, device: torch.device) -> None: ...

    @property
    def config(self) -> MethodConfig: ...

    @property
    def task(self) -> Task: ...

    def training_step(self, batch: Batch, step: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Update every network once; returns the losses by name, detached. Random numbers come from `rng` (CPU)."""
        ...

    def generate(self, request: GenerateBatch) -> Generated:
        """Defects of the domains wanted."""
        ...


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
class Monitored(Protocol):
    """A method whose losses show when a training goes wrong in a way that it knows."""

    def diagnose(self, losses: Mapping[str, float]) -> str | None:
        """What goes wrong and what to do, of losses averaged over some 200 steps; None if nothing does."""
        ...


@runtime_checkable
class Restorer(Protocol):
    """A method that can paint over what it painted."""

    def restore(self, x: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Defective windows, [B, C, H, W] in [-1, 1], with their defects painted over; a CPU generator for each."""
        ...


@runtime_checkable
class Repairer(Protocol):
    """A method that takes the defects out of any window."""

    def repair(self, x: Tensor) -> Tensor:
        """Windows, [B, C, S, S] in [-1, 1], without their defects."""
        ...
