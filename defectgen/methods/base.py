"""The interface of a method: the protocol `Method`, its optional extensions, and the records that they exchange."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from defectgen.errors import UsageError
from defectgen.methods.networks import Networks
from defectgen.nn.slots import Slots

ANCHOR = 0
"""Index of the domain of the normals (the anchor domain)."""
BORDER = 4
"""Pixels along a window's border where no defect is painted, except where the image ends."""


class Task(BaseModel):
    """What the training images determine about a model.

    `domains` are the normals, first, and the defect categories. `scales` holds, per product and category, the factor
    by which images are scaled before windows are cropped (at most 1). `ranges` holds, per product, the values that are
    black and white in its 16-bit images. `masks` holds, per category, real masks of the
    window's size (`control_maps.to_text`), from which methods that learn labels or pairs draw their control maps.
    `spots` holds, per category, where real defects lay (`places.to_text`), for methods that learn patches with masks;
    their windows are four times as wide as high if `elongated`. `hues` spans the colors of what the real defects
    change in their photographs, orthonormal vectors of `channels` values; empty if they have every color.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # models of earlier versions have other keys, too

    domains: tuple[str, ...]
    products: tuple[str, ...]
    channels: int
    scales: dict[str, dict[str, float]]
    ranges: dict[str, tuple[float, float]] = {}
    masks: dict[str, tuple[str, ...]] = {}
    spots: dict[str, tuple[str, ...]] = {}
    elongated: bool = False
    hues: tuple[tuple[float, ...], ...] = ()


class MethodConfig(BaseModel):
    """The hyperparameters that all methods share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)
    """Allowed values of `image_size`."""

    image_size: int = Field(128, description="side of the window, in pixels: 32, 64, 128 or 256")
    batch_size: int = Field(8, ge=1)
    steps: int = Field(100_000, ge=1)
    ema: float = Field(0.999, ge=0, lt=1)
    whole: bool = Field(False, description="windows show whole images, scaled down; for methods that learn windows")
    exposure: bool = Field(
        False,
        description="light multiplies contrast: defects are learned and painted at the brightness of their ground",
    )

    @property
    def draws_masks(self) -> bool:
        """Whether the method, of patches, learns them level, with a channel for their masks."""
        return False

    @property
    def has_own_scales(self) -> bool:
        """Whether the method, of whole images, takes windows of each category at a scale of its own."""
        return False

    @property
    def paints_masks(self) -> bool:
        """Whether the method paints inside masks, so that the mask asked for is the label."""
        return False

    @property
    def judged_at_once(self) -> bool:
        """Whether discriminators teach the generators from the first step on."""
        return True

    def extras(self, step: int, progress: float) -> tuple[bool, ...]:
        """Which parts of the training that not every step has, such as lazy penalties, a step has.

        Steps with the same answer cost the same, so that a run's costs can be told from one step of each kind.
        """
        del step, progress
        return ()

    @field_validator("image_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value not in cls.sizes:
            *others, last = cls.sizes
            raise ValueError(f"should be {', '.join(map(str, others))} or {last}")
        return value

    @classmethod
    def checked(cls, preset: Mapping[str, object], settings: Mapping[str, str], of: str) -> Self:
        """The configuration of a preset with `--set key=value` settings applied; `of` is the method's name.

        Raises:
            UsageError: unknown key or invalid value; the message says what is allowed.
        """
        for key in settings:
            if key not in cls.model_fields:
                raise UsageError(f"--set {key}: not a setting of {of}; it has {', '.join(sorted(cls.model_fields))}")
        try:
            return cls.model_validate({**preset, **settings})
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # the error concerns several settings
                raise UsageError(f"--set: {first['msg']}") from error
            key = str(first["loc"][0])
            raise UsageError(f"--set {key}: {first['msg']} ({cls.model_fields[key].description})") from error


@dataclass(frozen=True)
class Batch:
    """Windows for one training step: sources, and references from their target domains.

    Source and reference of a row have the same scale. Images `x` are [B, C, H, W] in [-1, 1]; domains `y` and
    products `p` are indices into the task's, [B]. `a_ref`, [B, domains - 1, H, W], is 1 where a reference shows a
    category, or everywhere if nobody marked where. It is missing for methods that learn patches.

    For methods that learn labels or pairs, `a`, shaped like `a_ref`, asks for new defects on the sources: real masks of
    the reference's categories, warped. `tones` and `tones_ref`, [B, 1, H, W] in [-1, 1], tell of both how much darker
    or brighter than its ground the defect is, as `control_maps.tones_of`; all 0 where they do not. `x_twin` are the
    references with their defects repaired, where `paired`, [B], is 1. `place_ref`, [B, 3], is where the references'
    windows lie in their images, x and y as in `windows.place_of`, and their scale over that of their category.
    `cut_ref`, [B], is whether their defects go on beyond them.
    """

    x: Tensor
    y: Tensor
    p: Tensor
    x_ref: Tensor
    y_ref: Tensor
    p_ref: Tensor
    a_ref: Tensor | None = None
    a: Tensor | None = None
    x_twin: Tensor | None = None
    paired: Tensor | None = None
    place_ref: Tensor | None = None
    cut_ref: Tensor | None = None
    tones: Tensor | None = None
    tones_ref: Tensor | None = None


@dataclass(frozen=True)
class GenerateBatch:
    """Normal windows x, [B, C, H, W] in [-1, 1], the requested domains y, [B], and a CPU generator for each row.

    A method that needs no windows may get x of [B, 0].

    The other fields are for methods with the matching control. `mix`, [B, domains - 1], gives weights of the defect
    categories in place of `y`. `a`, [B, domains - 1, H, W], gives them for each pixel, with `tones` as in `Batch`.
    `x_ref` and `x_style`, shaped like x, show the defects to transfer and the defects whose style to use; without them,
    defect and style are random. `object_rngs` draw the objects of whole images, in place of `rngs`; `truncation`, 0..1,
    draws codes towards their mean: images are less varied, and less often wrong.
    """

    x: Tensor
    y: Tensor
    rngs: Sequence[torch.Generator]
    mix: Tensor | None = None
    a: Tensor | None = None
    x_ref: Tensor | None = None
    x_style: Tensor | None = None
    object_rngs: Sequence[torch.Generator] | None = None
    truncation: float = 1.0
    tones: Tensor | None = None


@dataclass(frozen=True)
class Generated:
    """Windows x, [B, C, H, W] in [-1, 1], and soft masks, [B, 1, H, W] in [0, 1], if the method makes masks.

    `normal` holds the same windows without their defects, if the method makes whole images.
    """

    x: Tensor
    mask: Tensor | None = None
    normal: Tensor | None = None


class Method(Protocol):
    """A generator of defects. Its inputs and outputs are on the device that it was built on.

    Its row of `defectgen.methods.BUILT_IN` says what it learns from, what it makes, and how it can be controlled.
    """

    Config: ClassVar[type[MethodConfig]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    networks: Networks

    def __init__(self, config: Any, task: Task, device: torch.device) -> None: ...

    @property
    def config(self) -> MethodConfig: ...

    @property
    def task(self) -> Task: ...

    def training_step(self, batch: Batch, step: int, progress: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Run one training step and return the losses by name, detached.

        `progress`, 0..1, is the larger part of the run's steps and of its time that is used; every schedule follows it.
        Random numbers come from `rng` (CPU).
        """
        ...

    def generate(self, request: GenerateBatch) -> Generated:
        """Make defects of the requested domains."""
        ...


@runtime_checkable
class Initializable(Protocol):
    """A method that can start from the weights of a model with other categories and products."""

    @property
    def slots(self) -> Sequence[Slots]:
        """The tensors whose shapes or meanings depend on the task's domains, products or channels.

        Those of modules without parameters are left out: they belong to the images of the training.
        """
        ...


@runtime_checkable
class Staged(Protocol):
    """A method trained in two stages: first a backbone, which other models can share, then the part for defects."""

    @property
    def backbone_steps(self) -> int:
        """The step at which the first stage ends."""
        ...

    def backbone(self) -> dict[str, Tensor]:
        """The tensors of the first stage that the second one needs."""
        ...

    def take_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """Start the second stage from the result of `backbone`, of this model or another with the same widths."""
        ...


@runtime_checkable
class Monitored(Protocol):
    """A method that recognizes known training failures from its losses."""

    def diagnose(self, losses: Mapping[str, float]) -> str | None:
        """The failure and its remedy, from losses averaged over some 200 steps; None if there is no failure."""
        ...


Extent = tuple[float, float, float, float]
"""A part of a window: left, top, width and height as fractions of its side."""


@runtime_checkable
class Placing(Protocol):
    """A method whose defects belong to places of an image."""

    def place(self, y: int, rng: torch.Generator) -> tuple[float, float, float] | None:
        """Where the window should lie in its image: x, y and scale, as in `Batch.place_ref`; None means anywhere.

        It suits the defect of domain y that `generate` makes with an equal generator.
        """
        ...

    def extent(self, y: int, rng: torch.Generator, x_ref: Tensor | None = None) -> Extent | None:
        """The part of the window that this defect, or that of `x_ref`, [1, C, S, S], will cover; None if unknown."""
        ...


@runtime_checkable
class Interpolating(Protocol):
    """A method that can go from one category to another under one code."""

    def interpolated(self, y: int, other: int, count: int, rng: torch.Generator) -> Generated:
        """Defects from the domain y to another one, in `count` equal steps."""
        ...


@runtime_checkable
class Restorer(Protocol):
    """A method that removes defects, its own and real ones."""

    def restore(self, x: Tensor, y: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
        """Remove the defects of the domains y, [B], from windows x, [B, C, H, W] in [-1, 1].

        `rngs` holds a CPU generator for each.
        """
        ...


@runtime_checkable
class Repairer(Protocol):
    """A method that removes the defects from any window."""

    def repair(self, x: Tensor) -> Tensor:
        """Remove the defects from windows x, [B, C, S, S] in [-1, 1]."""
        ...
