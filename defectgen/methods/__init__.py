"""What each method learns, makes and can be told: one table, read without importing a network.

A method is a file of this package and a row of `BUILT_IN`. Another package adds one by an entry point of the group
`defectgen.methods`, whose name is the method's and whose value leads to its `MethodInfo`:

    [project.entry-points."defectgen.methods"]
    my-gan = "my_package:INFO"
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final, Literal

from pydantic import ValidationError

from defectgen.errors import UsageError

if TYPE_CHECKING:
    from defectgen.methods.base import Method, MethodConfig

GROUP: Final = "defectgen.methods"

DataKind = Literal["domains", "pairs", "labels", "masks", "patches"]
"""What a training row holds.

- `domains`: a window of any domain, and one of its target domain;
- `pairs`: a normal and a defective window at the same scale, all categories taken as one;
- `labels`: the same with all the categories of the defective window, and where they are;
- `masks`: a normal and a defective window with its mask, all at one scale;
- `patches`: a defect cut out by its mask, on a pure background.
"""
Output = Literal["window", "patch", "image"]
"""What a method makes: a window of a normal image, painted; a defect patch, to be blended onto one; a whole image
with its mask and its normal twin, whose defect can be blended as a patch, too."""
Control = Literal["region", "mask", "mixture", "union", "reference", "style"]
"""How a sample can be controlled: by a box, by a mask image, by weights of several categories, by several categories
on one image (each with a region of its own), by an image whose defect it takes, by one whose style it takes."""


@dataclass(frozen=True)
class MethodInfo:
    """A row of the table: all that the rest of defectgen knows of a method before it loads it."""

    name: str
    """As on the command line."""
    implementation: str
    """`module:class`; the class is a `defectgen.methods.base.Method`."""
    learns: DataKind
    makes: Output
    controls: frozenset[Control] = frozenset()
    needs_masks: bool = False
    """Whether each defect of the training data must have a mask."""
    repairs: bool = False
    """Whether it takes defects out of any image (`Repairer`), as `inspect` needs."""
    restores: bool = False
    """Whether it takes its own defects out of its samples (`Restorer`)."""
    stages: tuple[str, ...] = ("generator",)
    """What is trained one after the other. The first of two is a backbone that models can share (`Staged`)."""
    presets: tuple[str, ...] = ("paper", "compact", "tiny")

    @property
    def pastes(self) -> bool:
        """Whether its defects are blended onto images as patches are, at a place, scale and turn of the caller's."""
        return self.makes != "window"

    def load(self) -> "type[Method]":
        """Import the class.

        Raises:
            UsageError: another package's method that cannot be imported.
        """
        module, _, name = self.implementation.partition(":")
        try:
            found: type[Method] = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"--method {self.name}: {self.implementation} cannot be imported: {error}") from error
        return found

    def configure(self, preset: str, settings: Mapping[str, str]) -> "MethodConfig":
        """The configuration of a preset with `--set key=value` laid over it.

        Raises:
            UsageError: an unknown preset or key, or a bad value, with those allowed.
        """
        if preset not in self.presets:
            raise UsageError(f"--preset {preset}: {self.name} has {', '.join(self.presets)}")
        method = self.load()
        fields = method.Config.model_fields
        for key in settings:
            if key not in fields:
                raise UsageError(f"--set {key}: not a setting of {self.name}; it has {', '.join(sorted(fields))}")
        try:
            return method.Config.model_validate({**method.presets[preset], **settings})
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # no one setting is to blame
                raise UsageError(f"--set: {first['msg']}") from error
            key = str(first["loc"][0])
            raise UsageError(f"--set {key}: {first['msg']} ({fields[key].description})") from error


BUILT_IN: Final = (
    MethodInfo(
        name="dt-gan",
        implementation="defectgen.methods.dt_gan:DTGAN",
        learns="domains",
        makes="window",
        controls=frozenset({"reference", "style"}),
    ),
    MethodInfo(
        name="dcdganc",
        implementation="defectgen.methods.dcdganc:DCDGANc",
        learns="patches",
        makes="patch",
        controls=frozenset({"region", "mask", "mixture"}),
        needs_masks=True,
    ),
    MethodInfo(
        name="isu-gan",
        implementation="defectgen.methods.isu_gan:ISUGAN",
        learns="pairs",
        makes="window",
        repairs=True,
    ),
    MethodInfo(
        name="defect-gan",
        implementation="defectgen.methods.defect_gan:DefectGAN",
        learns="labels",
        makes="window",
        controls=frozenset({"region", "mask", "union"}),
        restores=True,
    ),
    MethodInfo(
        name="dfmgan",
        implementation="defectgen.methods.dfmgan:DFMGAN",
        learns="masks",
        makes="image",
        controls=frozenset({"region", "mask"}),
        needs_masks=True,
        stages=("backbone", "defects"),
    ),
)


@cache
def _built_in() -> dict[str, MethodInfo]:
    return {info.name: info for info in BUILT_IN}


def _added() -> dict[str, EntryPoint]:
    """Methods of other packages, unread. None of them can take the name of ours."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _built_in()}


def names() -> tuple[str, ...]:
    """The names of all methods, ours first."""
    return (*_built_in(), *sorted(_added()))


def info(name: str) -> MethodInfo:
    """The row of a method.

    Raises:
        UsageError: there is none, with those that there are; or another package's row that cannot be read.
    """
    if name in _built_in():
        return _built_in()[name]
    point = _added().get(name)
    if point is None:
        raise UsageError(f"--method {name}: no such method; there are {', '.join(names())}")
    package = point.dist.name if point.dist else point.value
    try:
        found = point.load()
    except Exception as error:  # whatever another package's import raises
        raise UsageError(f"--method {name}: the package {package} cannot be loaded: {error}") from error
    if not isinstance(found, MethodInfo) or found.name != name:
        raise UsageError(f"--method {name}: {point.value} of the package {package} is no MethodInfo of that name")
    return found


def which(can: Callable[[MethodInfo], bool]) -> tuple[str, ...]:
    """The names of the methods whose row satisfies `can`; packages that cannot be loaded can nothing."""
    found = []
    for name in names():
        try:
            row = info(name)
        except UsageError:
            continue
        if can(row):
            found.append(name)
    return tuple(found)


def having(control: Control) -> str:
    """The methods with a control, in words, for messages: `dcdganc, defect-gan and dfmgan`."""
    *others, last = which(lambda row: control in row.controls) or ("no method",)
    return f"{', '.join(others)} and {last}" if others else last
