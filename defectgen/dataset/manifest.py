"""`manifest.jsonl`: a line a sample, what it is and how it came about. The only place that knows the keys of a row."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from defectgen.errors import BadInputError

NAME: Final = "manifest.jsonl"


class _Record(BaseModel):
    """Keys of other versions are kept; ours are checked by their types where a row is made."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Reference(_Record):
    """A window of an image that a method took a defect or a style from, by its file and the SHA-256 of that."""

    file: str
    sha256: str = ""
    window: dict[str, int] | None = None


class PlacedDefect(_Record):
    """A defect that was blended in: a cut-out of an image, by its box there, or a patch that a model made."""

    content: str | None = None
    content_sha256: str = ""
    box: dict[str, int] | None = None
    at: tuple[int, int] | None = None
    """x and y of the patch's corner."""
    scale: float | None = None
    degrees: float | None = None


class Parameters(_Record):
    """What was drawn for a sample: with its seed, the whole of its randomness."""

    index: int = 0
    attempt: int = 0
    defects: tuple[PlacedDefect, ...] = ()


class Provenance(_Record):
    """How a sample came about. What is not set does not apply, and stays out of the row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = None
    """The normal image that it was made on."""
    source_sha256: str | None = None
    window: dict[str, int] | None = None
    """The part of it that was painted, in pixels."""
    model: str | None = None
    model_sha256: str | None = None
    method: str = ""
    mixture: dict[str, float] | None = None
    contents: str | None = None
    """Where the defects were cut out."""
    regions: tuple[str, ...] | None = None
    guides: str | None = None
    reference: Reference | None = None
    style: Reference | None = None
    seed: int = 0
    placement: dict[str, Any] | None = None
    parameters: Parameters = Parameters()
    gate: str | None = None
    refused: tuple[str, ...] = ()
    """Why the gate refused the attempts before this one."""

    @property
    def used_photographs(self) -> frozenset[str]:
        """The SHA-256 of every image that went into the sample: its source, the defects and the style it took."""
        named = (self.reference, self.style)
        found = {self.source_sha256, *(each.sha256 for each in named if each is not None)}
        return frozenset(each for each in found | {each.content_sha256 for each in self.parameters.defects} if each)

    @property
    def traceable(self) -> bool:
        """Whether every image that went into the sample is named with its SHA-256."""
        named = [each.sha256 for each in (self.reference, self.style) if each is not None]
        return all((*named, *(each.content_sha256 for each in self.parameters.defects if each.content is not None)))

    @property
    def run(self) -> dict[str, Any]:
        """What all samples of a dataset share, so that a resumed run can be told from another one."""
        keys = ("model_sha256", "method", "seed", "contents", "placement", "regions", "gate", "guides")
        return {key: getattr(self, key) for key in keys}


class _Files(_Record):
    index: int
    image: str
    """Of this and the following, paths are relative to the dataset, with slashes."""
    mask: str
    restored: str | None = None
    normal: str | None = None
    category: str
    product: str = ""
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    """x, y, width and height of each connected piece of the mask."""
    area: int = 0

    @field_validator("image", "mask", "restored", "normal")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        path = PurePosixPath(value or "")
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{path} leads out of the dataset")
        return value

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the sample."""
        return tuple(each for each in (self.image, self.mask, self.restored, self.normal) if each is not None)


class Row(Provenance, _Files):
    """A sample of a dataset."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def line(self) -> str:
        """As it stands in the file."""
        return json.dumps(self.model_dump(mode="json", exclude_unset=True), ensure_ascii=False) + "\n"


def parse(manifest: Path, text: bytes) -> Iterator[Row]:
    """The rows of a manifest's text.

    Raises:
        BadInputError: a damaged row, with its line.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            yield Row.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            what = f"{key}: {first['msg']}" if key else first["msg"]
            raise BadInputError(f"{manifest}: line {number} cannot be read: {what}") from error
