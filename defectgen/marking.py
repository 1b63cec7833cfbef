"""How defects are marked: by black and white masks in files, by annotations, or by masks of several values."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from defectgen import annotations
from defectgen.annotations import Annotations
from defectgen.errors import UsageError
from defectgen.imaging.images import ImageError, read_image
from defectgen.imaging.mask_files import PickedMask, Value, read_masks, unnamed_values
from defectgen.mask_matching import READERS, about, is_mask, normalized

_COLOR = re.compile(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})", re.IGNORECASE)
_EXTREME = 64  # gray levels from black or white within which most of a mask is
_MOST = 0.9


@dataclass(frozen=True)
class Marking:
    """How defects are marked; without any of these, by black and white masks.

    Raises:
        UsageError: two that exclude each other, or a value without a category.
    """

    annotations: Path | None = None
    """An annotation file, or a folder of them: LabelMe, COCO, YOLO, CVAT or Pascal VOC."""
    values: tuple[tuple[Value, str], ...] = ()
    """The categories that values of the masks stand for."""
    threshold: int | None = None
    """The value from which on a pixel of a mask is marked."""

    def __post_init__(self) -> None:
        given = {
            "--annotations": self.annotations is not None,
            "--mask-values": bool(self.values),
            "--mask-threshold": self.threshold is not None,
        }
        names = [name for name, used in given.items() if used]
        if len(names) > 1:
            raise UsageError(f"{names[0]} and {names[1]} both say how defects are marked: give one of them")

    @cached_property
    def read(self) -> Annotations:
        """The annotations. Raises as `annotations.read`."""
        assert self.annotations is not None
        return annotations.read(self.annotations)

    @property
    def picked(self) -> bool:
        """Whether masks are read by their values or a threshold."""
        return bool(self.values) or self.threshold is not None

    def is_mask(self, path: Path) -> bool:
        """Whether a file is such a mask by its pixels."""
        if not self.picked:
            return is_mask(path)
        try:
            if self.values:
                return not set(unnamed_values(path, [value for value, _ in self.values])) - {255}
            colors = read_image(path).colors
        except ImageError:
            return False
        extreme = np.minimum(colors, np.iinfo(colors.dtype).max - colors) < _EXTREME
        return bool((colors == colors[..., :1]).all() and extreme.mean() > _MOST)

    def categories(self, masks: list[Path]) -> tuple[dict[Path, list[str]], list[str]]:
        """The categories that masks of several values show, and a line about values that stand for none.

        A mask that cannot be read shows all of them: whoever reads it will say why it cannot.
        """
        with ThreadPoolExecutor(READERS, thread_name_prefix="masks") as pool:
            shown = dict(zip(masks, pool.map(self._shown, masks), strict=True))
        unnamed = {mask: values for mask, (_, values) in shown.items() if values}
        lines = []
        if unnamed:
            values = ", ".join(dict.fromkeys(_written(each) for of in unnamed.values() for each in of))
            one, many = "mask has values without a category", "masks have values without a category"
            lines.append(about(list(unnamed), one, many, f"--mask-values does not name {values}"))
        return {mask: categories for mask, (categories, _) in shown.items()}, lines

    def of(self, mask: Path, category: str) -> PickedMask:
        """The part of a mask that marks a category; all of it if values do not count."""
        return PickedMask(mask, tuple(v for v, name in self.values if name == category), self.threshold or 1)

    def _shown(self, mask: Path) -> tuple[list[str], list[Value]]:
        names = list(dict.fromkeys(name for _, name in self.values))
        try:
            shown = [name for name in names if read_masks(self.of(mask, name)).any()]
            return shown, unnamed_values(mask, [value for value, _ in self.values])
        except ImageError:
            return names, []


MASKS: Final = Marking()
"""Marked by black and white masks."""


def parse_values(text: str) -> tuple[tuple[Value, str], ...]:
    """Parse `2=crack,3=dent` or `#ff0000=crack`.

    Raises:
        UsageError: the text has another form.
    """
    found: dict[Value, str] = {}
    for part in text.split(","):
        value, _, name = (each.strip() for each in part.partition("="))
        color = _COLOR.fullmatch(value)
        if not name or not (color or value.isdecimal()):
            raise UsageError(f"--mask-values {text}: give VALUE=CATEGORY,..., such as 2=crack,3=dent or #ff0000=crack")
        key: Value = (int(color[1], 16), int(color[2], 16), int(color[3], 16)) if color else int(value)
        if key in found:
            raise UsageError(f"--mask-values {text}: {value} is given twice")
        found[key] = normalized(name)
    return tuple(found.items())


def _written(value: Value) -> str:
    """A value as in `--mask-values`."""
    return str(value) if isinstance(value, int) else "#{:02x}{:02x}{:02x}".format(*value)
