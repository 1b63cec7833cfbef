"""`weights.toml`, the list of trained models: its only reader and writer.

One table a model; paths are relative to the file's folder where they lie below it. What people wrote into the
file, comments included, is kept.
"""

import os
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tomlkit.exceptions import TOMLKitError

from defectgen import files
from defectgen.errors import UsageError, WeightsError

NAME: Final = "weights.toml"
_PACKAGE = Path(__file__).parents[1]


class Entry(BaseModel):
    """A trained model. `trained_on` maps each product to the folder of its normals; paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    method: str
    categories: tuple[str, ...]
    products: tuple[str, ...]
    image_size: int
    channels: int
    file: Path
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: datetime
    trained_on: dict[str, Path]


def find_registry(explicit: Path | None) -> list[Path]:
    """The files to search, in order: `explicit` alone, or that of this folder or above, then our own."""
    if explicit is not None:
        return [explicit]
    # In a source checkout our own file lies beside the package, in a wheel inside it.
    found = [path for path in (_nearest(), _PACKAGE / NAME, _PACKAGE.parent / NAME) if path and path.is_file()]
    return list(dict.fromkeys(found))


def find_writable(explicit: Path | None) -> Path:
    """The file to enter a new model in: `explicit`, or that of this folder or above, or a new one here."""
    return explicit or _nearest() or Path.cwd() / NAME


def find(
    *,
    name: str | None = None,
    categories: Collection[str] = (),
    methods: Collection[str] = (),
    files: Sequence[Path],
) -> Entry:
    """The model called `name`, or the newest that knows all `categories`, from the first of `files` with one.

    `methods` are those that will do, if not any.

    Raises:
        WeightsError: there is none, with those that there are; or a file that cannot be read.
    """
    known = []
    for file in files:
        entries = read(file)
        known += entries
        fitting = [
            entry
            for entry in entries
            if name in (None, entry.name)
            and set(categories) <= set(entry.categories)
            and (not methods or entry.method in methods)
        ]
        if fitting:
            return max(reversed(fitting), key=lambda entry: entry.created.timestamp())
    where = ", ".join(map(str, files)) or f"{NAME} (none in this folder or above)"
    wanted = f"no model {name}" if name else "no model"
    if methods:
        wanted += f" of {' or '.join(methods)}"
    if categories:
        wanted += f" that knows {' and '.join(categories)}"
    those = "; ".join(f"{entry.name} knows {', '.join(entry.categories)}" for entry in known)
    advice = f"there are: {those}" if known else "train one first, or name another file with --weights"
    raise WeightsError(f"{where}: {wanted}; {advice}")


def verify(entry: Entry) -> None:
    """Check that a model's file is the one that was entered.

    Raises:
        WeightsError: it is missing, or another.
    """
    if not entry.file.is_file():
        raise WeightsError(
            f"{entry.file}: the file of the model {entry.name} is missing; put it back, train again, "
            "or choose another with --model"
        )
    if files.sha256(entry.file) != entry.sha256:
        raise WeightsError(
            f"{entry.file}: the file of the model {entry.name} was altered since it was entered in {NAME}; "
            "copy it again, train again, or choose another with --model"
        )


def check_name(name: str, model: Path, file: Path) -> None:
    """Check that `model` can be entered in `file` as `name`: the name is free, or that model's own.

    Raises:
        UsageError: another model has the name. WeightsError: `file` cannot be read.
    """
    for entry in read(file) if file.exists() else []:
        if entry.name == name and entry.file != _absolute(model):
            raise UsageError(f"{file}: the name {name} belongs to {entry.file}; give this model another with --name")


def add(entry: Entry, file: Path) -> None:
    """Enter a model in `file`, which is made if need be; a model with the same name and file is replaced.

    Raises:
        UsageError: another model has the name. WeightsError: `file` cannot be read.
    """
    check_name(entry.name, entry.file, file)
    document = _parse(file) if file.exists() else tomlkit.document()
    folder = Path(_absolute(file)).parent
    trained_on = tomlkit.inline_table()
    trained_on.update({product: _portable(path, folder) for product, path in entry.trained_on.items()})
    values: dict[str, Any] = {
        **entry.model_dump(exclude={"name", "trained_on"}, mode="python"),
        "categories": list(entry.categories),
        "products": list(entry.products),
        "file": _portable(entry.file, folder),
        "trained_on": trained_on,
    }
    table = document.setdefault(entry.name, tomlkit.table())
    for key, value in values.items():
        table[key] = value
    files.write(file, tomlkit.dumps(document))


def read(file: Path) -> list[Entry]:
    """All models of a `weights.toml`, in its order.

    Raises:
        WeightsError: no such file, malformed TOML, or a table with missing, unknown or bad keys.
    """
    folder = Path(_absolute(file)).parent
    entries = []
    for name, table in _parse(file).unwrap().items():
        if not isinstance(table, dict):
            raise WeightsError(f"{file}: {name}: only tables may stand here, one a model, as [{name}]")
        try:
            entry = Entry.model_validate({"name": name, **table})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise WeightsError(f"{file}: [{name}] {key}: {first['msg']}") from error
        paths = {product: _absolute(folder / path) for product, path in entry.trained_on.items()}
        entries.append(entry.model_copy(update={"file": _absolute(folder / entry.file), "trained_on": paths}))
    return entries


def _nearest() -> Path | None:
    here = Path.cwd()
    return next((path for folder in (here, *here.parents) if (path := folder / NAME).is_file()), None)


def _parse(file: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{file}: no such file") from error
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file}: not valid TOML: {error}") from error


def _absolute(path: Path) -> Path:
    """`path` without `..`, its links unfollowed: a run folder may be a link to a larger disk."""
    return Path(os.path.abspath(path))


def _portable(path: Path, folder: Path) -> str:
    path = _absolute(path)
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
