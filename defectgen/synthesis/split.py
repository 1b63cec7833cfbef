"""Samples for training and for validation, made from different photographs.

The side of a sample follows from its number alone, so it stays when more are made. Its normal and its real defects are
drawn from the photographs of that side: if samples were divided afterwards, hundreds of them would share a few
photographs, and no division would be clean.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from defectgen.folders import SourceImage


@dataclass(frozen=True)
class Split:
    """How samples are divided. `val` is the share for validation, of each category's samples and of the photographs.

    With `only_normals` all samples are for testing, and so are their normals; the other normals are for training, and
    real defects are not divided.
    """

    val: float
    only_normals: bool = False
    known: Mapping[str, bool] = field(default_factory=dict)
    """The photographs, by SHA-256, whose side is settled by an earlier run: whether it is for validation."""

    def holds_out(self, number: int) -> bool:
        """Whether the sample of that number in its category, from 0, is for validation. They are evenly spread."""
        before, after = (math.floor(count * self.val + 0.5 - 1e-9) for count in (number, number + 1))
        return self.only_normals or after > before


class Photographs:
    """Photographs by side. Those of a group that has a single one are on both; `shared` names these groups."""

    def __init__(
        self, images: Sequence[SourceImage], split: Split, group: Callable[[SourceImage], str],
        sha256: Callable[[Path], str],
    ) -> None:  # fmt: skip
        contents = [sha256(image.path) for image in images]
        groups: dict[str, set[str]] = {}
        for image, content in zip(images, contents, strict=True):
            groups.setdefault(group(image), set()).add(content)
        held = {content for content in contents if split.known.get(content) is True}
        kept = {content for content in contents if split.known.get(content) is False}
        # The smallest group first, because a photograph of several groups is on one side only. The order by hash is
        # random, but the same in each run.
        for own in sorted(groups.values(), key=lambda own: (len(own), sorted(own))):
            wanted = min(max(1, round(split.val * len(own))), len(own) - 1) - len(own & held)
            free = sorted(own - held - kept)
            held.update(free[: max(0, wanted)])
            kept.update(free[max(0, wanted) :])
        self.shared = tuple(sorted(name for name, own in groups.items() if not own & held or not own & kept))
        both = set(self.shared)
        sides = [
            (group(image) in both or content not in held, group(image) in both or content in held)
            for image, content in zip(images, contents, strict=True)
        ]
        self._sides = {
            validation: tuple(image for image, side in zip(images, sides, strict=True) if side[validation])
            for validation in (False, True)
        }

    def of(self, validation: bool) -> tuple[SourceImage, ...]:
        """The photographs for validation, or those for training."""
        return self._sides[validation]


def said(what: str, shared: Iterable[str]) -> str:
    """One line that says of which groups there is a single photograph."""
    return f"{', '.join(shared)}: a single photograph of {what}, so samples for training and validation share it"
