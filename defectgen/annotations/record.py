"""What the readers of the formats return: the shapes on each image."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from defectgen.errors import BadInputError
from defectgen.imaging.shapes import Draw

Kind = Literal["area", "box", "line"]

_MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Shape:
    """A marked place and its label. A box holds more than the defect, and a line or point has no width of its own."""

    label: str
    draw: Draw
    kind: Kind = "area"


@dataclass(frozen=True)
class Annotation:
    """What a file says about an image.

    `names` are what the image may be called, with its folders as recorded, the surest one first. `unread` names what
    is marked on it, but has no shape that can be read.
    """

    file: Path
    names: tuple[str, ...]
    size: tuple[int, int] | None
    """Height and width of the image; None if the file does not say."""
    shapes: tuple[Shape, ...]
    unread: tuple[str, ...] = ()


@contextmanager
def malformed(path: Path, format_name: str) -> Iterator[None]:
    """Within the block, whatever fails since a file has another form than its format is the user's error.

    Raises:
        BadInputError: naming the file.
    """
    try:
        yield
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror or error}") from error
    except _MALFORMED as error:
        detail = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise BadInputError(f"{path}: damaged, or not {format_name} ({detail}); export it again") from error


def load_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError, OSError or RecursionError."""
    return json.loads(path.read_text(encoding="utf-8-sig"))


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
    """The recorded size of an image; None if it is missing or 0, as some tools leave it."""
    return (int(height), int(width)) if height and width else None


def label_of(text: Any) -> str:
    """A label as valid text: JSON can hold halves of characters."""
    return str(text).encode("utf-8", "replace").decode().strip()


def name_of(text: Any) -> str:
    """The recorded name of an image, with forward slashes."""
    return str(text or "").replace("\\", "/")
