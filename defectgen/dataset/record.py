"""`dataset.json`: facts about a whole dataset. Only this module reads it."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from defectgen import files
from defectgen.errors import BadInputError

NAME: Final = "dataset.json"


class Record(BaseModel):
    """What later runs need of `dataset.json`. The other keys are for people."""

    model_config = ConfigDict(frozen=True)

    layout: str | None = None
    command: str = ""
    trained_on: tuple[str, ...] = ()
    """The SHA-256 of the images that the model was trained on."""
    gated_by: tuple[str, ...] = ()
    """The SHA-256 of the images that the gate used."""
    rejected: dict[int, str] = {}
    """The samples that were rejected, which other ones replace: their indices and images."""
    normals: tuple[str, ...] = ()
    """The files of normal images that belong to the dataset, relative to it."""
    derived: tuple[str, ...] | None = None
    """The files that are made of the manifest, but for the sheet and YOLO's labels. None: an older version wrote it."""
    val: float | None = None
    """The share for validation, if the layout has one."""


def read(folder: Path) -> Record:
    """The record of a dataset; an empty one if it has none.

    Raises:
        BadInputError: the file is damaged, or a link.
    """
    file = files.inside(folder, NAME)
    if not file.is_file():
        return Record()
    try:
        return Record.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise BadInputError(
            f"{file}: damaged: {what}; restore it, or make the dataset again with --overwrite"
        ) from error
    except OSError as error:
        raise BadInputError(f"{file}: cannot be read ({error.strerror})") from error
