"""The table of methods: what each one learns from, what it makes, and how it can be controlled.

Reading the table imports no network. A built-in method is a file of this package and a row of `BUILT_IN`. Another
package adds a method with an entry point in the group `defectgen.methods`. The entry point's name is the method's
name, and its value refers to the method's `MethodInfo`:

    [project.entry-points."defectgen.methods"]
    my-gan = "my_package:INFO"
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final, Literal

from defectgen.errors import UsageError

if TYPE_CHECKING:
    from defectgen.methods.base import Method, MethodConfig

GROUP: Final = "defectgen.methods"

DataKind = Literal["domains", "pairs", "labels", "masks", "patches"]
"""What a row of a training batch holds.

- `domains`: a window from any domain, and one from its target domain;
- `pairs`: a normal and a defective window at the same scale, and where to paint; all categories count as one;
- `labels`: as `pairs`, with all the categories of the defective window;
- `masks`: a normal and a defective window with its mask; each product has one scale;
- `patches`: a defect patch, cut out by its mask, on a pure background.
"""
Output = Literal["window", "patch", "image"]
"""What a method makes.

- `window`: a window of a normal image with a defect painted into it;
- `patch`: a defect patch, which is blended onto a normal image;
- `image`: a whole image with its mask and the same image without the defect. The defect can also be blended as a patch.
"""
Images = Literal["surfaces", "objects", "unions", "unmasked"]
"""What images show.

- `surfaces`: textures from edge to edge, and defects with masks;
- `objects`: objects before a plain background, and several defects of each category with masks;
- `unions`: several categories on one image;
- `unmasked`: defects of which some have no mask.
"""
Control = Literal["region", "mask", "mixture", "union", "reference", "style", "object"]
"""How a sample can be controlled.

- `region`: by a box;
- `mask`: by a mask image;
- `mixture`: by weights of several categories;
- `union`: by several categories on one image, each with its own region;
- `reference`: by an image whose defect is transferred;
- `style`: by an image whose style is used;
- `object`: one object with several defects, and codes near their mean.
"""


@dataclass(frozen=True)
class MethodInfo:
    """A row of the table: everything the rest of defectgen knows about a method before loading it."""

    name: str
    """The method's name on the command line."""
    implementation: str
    """`module:class`, where the class is a `defectgen.methods.base.Method`."""
    learns: DataKind
    makes: Output
    controls: frozenset[Control] = frozenset()
    needs_masks: bool = False
    """Whether every defect image in the training data needs a mask."""
    repairs: bool = False
    """Whether it removes defects from any image (`Repairer`), as `inspect` requires."""
    restores: bool = False
    """Whether it removes defects, its own and real ones (`Restorer`)."""
    suits: frozenset[Images] = frozenset()
    """The images that it suits best of all methods, for `train` without `--method`."""
    stages: tuple[str, ...] = ("generator",)
    """The training stages, in order. With two stages, the first trains a backbone that models can share (`Staged`)."""
    presets: tuple[str, ...] = ("paper", "compact", "tiny")

    @property
    def pastes(self) -> bool:
        """Whether its defects are blended onto images, at a place, scale and rotation that the caller chooses."""
        return self.makes != "window"

    def load(self) -> "type[Method]":
        """Import and return the class.

        Raises:
            UsageError: the method belongs to another package and cannot be imported.
        """
        module, _, name = self.implementation.partition(":")
        try:
            found: type[Method] = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"--method {self.name}: {self.implementation} cannot be imported: {error}") from error
        return found

    def configure(self, preset: str, settings: Mapping[str, str]) -> "MethodConfig":
        """The configuration of a preset, with `--set key=value` settings applied.

        Raises:
            UsageError: unknown preset or key, or invalid value; the message says what is allowed.
        """
        method = self.load()
        if preset not in method.presets:
            raise UsageError(f"--preset {preset}: not a preset of {self.name}; it has {', '.join(method.presets)}")
        return method.Config.checked(method.presets[preset], settings, of=self.name)


BUILT_IN: Final = (
    MethodInfo(
        name="dt-gan",
        implementation="defectgen.methods.dt_gan:DTGAN",
        learns="domains",
        makes="window",
        controls=frozenset({"reference", "style", "region", "mask"}),
        restores=True,
        suits=frozenset({"unmasked"}),
    ),
    MethodInfo(
        name="dcdganc",
        implementation="defectgen.methods.dcdganc:DCDGANc",
        learns="patches",
        makes="patch",
        controls=frozenset({"region", "mask", "mixture", "reference"}),
        needs_masks=True,
        suits=frozenset({"objects"}),
    ),
    MethodInfo(
        name="isu-gan",
        implementation="defectgen.methods.isu_gan:ISUGAN",
        learns="pairs",
        makes="window",
        controls=frozenset({"region", "mask"}),
        repairs=True,
        restores=True,
    ),
    MethodInfo(
        name="defect-gan",
        implementation="defectgen.methods.defect_gan:DefectGAN",
        learns="labels",
        makes="window",
        controls=frozenset({"region", "mask", "union"}),
        restores=True,
        suits=frozenset({"unions", "surfaces"}),
    ),
    MethodInfo(
        name="dfmgan",
        implementation="defectgen.methods.dfmgan:DFMGAN",
        learns="masks",
        makes="image",
        controls=frozenset({"region", "mask", "object"}),
        needs_masks=True,
        stages=("backbone", "defects"),
    ),
)


@cache
def _built_in() -> dict[str, MethodInfo]:
    return {info.name: info for info in BUILT_IN}


@cache
def _added() -> dict[str, EntryPoint]:
    """Entry points of other packages' methods, not loaded yet. They cannot override a built-in method."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in _built_in()}


def names() -> tuple[str, ...]:
    """The names of all methods, built-in ones first."""
    return (*_built_in(), *sorted(_added()))


def info(name: str) -> MethodInfo:
    """The table row of a method.

    Raises:
        UsageError: unknown method (the message lists the available ones), or another package's row that cannot be
            loaded.
    """
    if name in _built_in():
        return _built_in()[name]
    point = _added().get(name)
    if point is None:
        raise UsageError(f"--method {name}: unknown method; available: {', '.join(names())}")
    package = point.dist.name if point.dist else point.value
    try:
        found = point.load()
    except Exception as error:  # another package's import may raise anything
        raise UsageError(f"--method {name}: the package {package} cannot be loaded: {error}") from error
    if not isinstance(found, MethodInfo) or found.name != name:
        raise UsageError(f"--method {name}: {point.value} of the package {package} is not a MethodInfo of that name")
    return found


def which(can: Callable[[MethodInfo], bool]) -> tuple[str, ...]:
    """The names of the methods whose row satisfies `can`. Methods that cannot be loaded are skipped."""
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
    """The methods that support a control, as text for messages: `dcdganc, defect-gan and dfmgan`."""
    *others, last = which(lambda row: control in row.controls) or ("no method",)
    return f"{', '.join(others)} and {last}" if others else last
