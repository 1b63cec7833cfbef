"""Reads and writes `weights.toml`, the list of trained models. No other module does.

The file has one table per model. Paths below the file's folder are stored relative to it. Edits by people, including
comments, are kept.
"""

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from defectgen import files, toml
from defectgen.errors import UsageError, WeightsError
from defectgen.methods import names as method_names

NAME: Final = "weights.toml"
MODEL: Final = "model.safetensors"
"""The file of a model in its run folder."""
BACKBONE: Final = "backbone.safetensors"
"""That of the first stage of its training, which models can share."""
MEMORY_BANK: Final = "memory-bank"
"""The method of a model that only `inspect` uses, learned from flawless images and known defects."""
_PACKAGE = Path(__file__).parents[1]
FEWEST_STEPS: Final = 100
"""A model of fewer is a trial."""


def _sortable(created: datetime) -> datetime:
    if not 1970 < created.year < 9999:  # years whose timestamps do not exist in every time zone
        raise ValueError(f"the year {created.year} cannot be right")
    return created


class Entry(BaseModel):
    """A trained model. `trained_on` maps each product to the folder of its normals. Paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    method: str
    categories: tuple[str, ...]
    products: tuple[str, ...]
    image_size: int
    channels: int
    file: Path
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: Annotated[datetime, AfterValidator(_sortable)]
    trained_on: dict[str, Path]
    steps: int | None = Field(default=None, ge=1)
    """The steps that it was trained for; None if the list does not tell."""
    stopped: bool = False
    """Whether a signal ended its training early."""

    @property
    def unfinished(self) -> str | None:
        """Why it is no default where another model fits: its training was stopped, or very short; None if neither."""
        if self.stopped:
            return "was stopped" + (f" after {self.steps:,} steps" if self.steps else " early")
        return f"was trained for {self.steps} steps only" if self.steps and self.steps < FEWEST_STEPS else None

    def unusable(self) -> str | None:
        """What keeps it from being loaded, without reading its file; None if nothing is known."""
        if not os.path.isfile(self.file):  # which takes any path
            return "the file is missing"
        known = (*method_names(), MEMORY_BANK)
        return None if self.method in known else f"the method {self.method} is not installed"


_DEFAULTS: Final = {key: field.default for key, field in Entry.model_fields.items() if not field.is_required()}


def find_registry(explicit: Path | None, *, shipped: bool = True) -> list[Path]:
    """The files to search, in order: only `explicit`, or the nearest in this folder or above, then the package's.

    Args:
        shipped: whether the package's is searched, too.
    """
    if explicit is not None:
        return [explicit]
    # The package's file is beside the package in a source checkout, and inside it in a wheel.
    package = _PACKAGE / NAME, _PACKAGE.parent / NAME
    found = [path for path in (_nearest(), *(package if shipped else ())) if path and path.exists()]
    return list(dict.fromkeys(found))


def find_writable(explicit: Path | None) -> Path:
    """The file to add a new model to: `explicit`, the nearest in this folder or above, or a new one here."""
    return explicit or _nearest() or Path.cwd() / NAME


def find(
    *,
    name: str | None = None,
    categories: Collection[str] = (),
    methods: Collection[str] = (),
    names: Callable[[str, Collection[str]], Collection[str]] = lambda text, _: (text,),
    files: Sequence[Path],
    warn: Callable[[str], object] = lambda _: None,
) -> Entry:
    """The model `name`, or the newest that knows all `categories`, from the first of `files` that has one.

    Without a name, models that cannot be used are passed over, and unfinished ones where a finished one fits.

    Args:
        methods: restricts the search to models of these methods; none means all that generate.
        names: the categories that a text in `categories` stands for, given those that a model knows.
        warn: called with a line about each model that is passed over, and about an unfinished one that is taken.

    Raises:
        WeightsError: no model fits (the message lists the available ones), or a file cannot be read.
    """
    known, passed_over = list[Entry](), list[str]()
    newest: Entry | None = None
    for file in files:
        entries = read(file)
        known += [entry for entry in entries if methods or entry.method != MEMORY_BANK]
        fitting = [
            entry
            for entry in entries
            if name in (None, entry.name)
            and all(set(names(text, entry.categories)) <= set(entry.categories) for text in categories)
            and (entry.method in methods if methods else entry.method != MEMORY_BANK)
        ]
        if name is None:
            passed_over += _unusable(file, fitting)
            fitting = [entry for entry in fitting if not entry.unusable()]
            newest = newest or _newest(fitting)
            fitting = [entry for entry in fitting if not entry.unfinished]
        found = _newest(fitting)
        if found is not None:
            for line in passed_over:
                warn(line)
            if name is not None and found.unfinished:
                warn(f"{found.name} {found.unfinished}; for better samples train longer")
            if newest is not None and newest.unfinished:
                warn(f"{newest.name} {newest.unfinished}: {found.name} is used instead; --model {newest.name} takes it")
            return found
    if newest is not None:
        for line in passed_over:
            warn(line)
        warn(f"{newest.name} {newest.unfinished}, but no other model fits; for better samples train longer")
        return newest
    where = ", ".join(map(str, files)) or f"{NAME} (none in this folder or above)"
    request = f"no model {name}" if name else "no usable model" if passed_over else "no model"
    if methods:
        request += f" of {' or '.join(methods)}"
    if categories:
        request += f" that knows {' and '.join(categories)}"
    available = "; ".join(f"{entry.name} knows {', '.join(entry.categories)}" for entry in known)
    advice = f"available: {available}" if known else "train one first, or name another file with --weights"
    raise WeightsError(f"{where}: {request}; {'; '.join([*passed_over, advice])}")


def _newest(entries: Sequence[Entry]) -> Entry | None:
    """The newest of the models, of several the last in the file; None if there are none."""
    return max(reversed(entries), key=lambda entry: entry.created.timestamp(), default=None)


def _unusable(file: Path, entries: Sequence[Entry]) -> list[str]:
    """A line for each reason that models of a list cannot be used for, with their names."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if reason := entry.unusable():
            reasons.setdefault(reason, []).append(entry.name)
    return [
        f"{file}: passed over, since {reason}: {', '.join(found)}; restore that, or delete the table"
        for reason, found in reasons.items()
    ]


def verify(entry: Entry) -> None:
    """Check that a model's file is unchanged since the model was added.

    Raises:
        WeightsError: the file is missing, unreadable or altered.
    """
    try:
        if entry.file.exists() and not entry.file.is_file():
            raise OSError("not a regular file")
        sha256 = files.sha256(entry.file)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({_reason(error)})"
        raise WeightsError(
            f"{entry.file}: the file of the model {entry.name} {reason}; restore it, train again, "
            "or choose another with --model"
        ) from error
    if sha256 != entry.sha256:
        raise WeightsError(
            f"{entry.file}: the file of the model {entry.name} was altered after it was added to {NAME}; "
            "copy it again, train again, or choose another with --model"
        )


def check_name(name: str, model: Path, file: Path) -> None:
    """Check that `model` can be added to `file` as `name`: the name is free, or already that of this model.

    Raises:
        UsageError: another model has this name. WeightsError: `file` cannot be read.
    """
    for entry in read(file) if file.exists() else []:
        if entry.name == name and entry.file != _absolute(model):
            raise UsageError(f"{file}: the name {name} is that of {entry.file}; choose another with --name")


def add(entry: Entry, file: Path) -> None:
    """Add a model to `file`, which is created if missing. An entry with the same name and model file is replaced.

    Raises:
        UsageError: another model has this name, or `file` cannot be written. WeightsError: `file` cannot be read.
    """
    with changing(file):
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
        for key in _DEFAULTS:
            table.pop(key, None)
        for key, value in values.items():
            if key not in _DEFAULTS or value != _DEFAULTS[key]:
                table[key] = value
        files.write(file, tomlkit.dumps(document))


def changing(file: Path) -> AbstractContextManager[None]:
    """A context in which no other process changes `file`, nor a model in it: it waits for those that do."""
    return files.locked(_absolute(file).parent, wait=True)


def read(file: Path) -> list[Entry]:
    """All models of a `weights.toml`, in the order of the file.

    Raises:
        WeightsError: the file is missing or not valid TOML, or a table has missing, unknown or invalid keys.
    """
    folder = Path(_absolute(file)).parent
    entries = []
    for name, table in _parse(file).unwrap().items():
        if not isinstance(table, dict):
            raise WeightsError(f"{file}: {name}: only tables are allowed here, one per model: [{name}]")
        try:
            entry = Entry.model_validate({"name": name, **table})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise WeightsError(
                f"{file}: [{name}] {key}: {first['msg']}{_place(file, name)}; correct it, or delete the table"
            ) from error
        paths = {product: _absolute(folder / path) for product, path in entry.trained_on.items()}
        entries.append(entry.model_copy(update={"file": _absolute(folder / entry.file), "trained_on": paths}))
    return entries


def _nearest() -> Path | None:
    here = Path.cwd()
    return next((path for folder in (here, *here.parents) if (path := folder / NAME).exists()), None)


def _parse(file: Path) -> tomlkit.TOMLDocument:
    try:
        return toml.parse(file)
    except FileNotFoundError as error:
        raise WeightsError(f"{file}: no such file") from error
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({_reason(error)})") from error
    except ValueError as error:
        raise WeightsError(f"{file}: not valid TOML: {error}") from error


def _place(file: Path, name: str) -> str:
    """The line where the table of a model begins, for a message."""
    headers = (f"[{name}]", f'["{name}"]', f"['{name}']")
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    return next((f" (line {i})" for i, line in enumerate(lines, 1) if line.strip().startswith(headers)), "")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _absolute(path: Path) -> Path:
    """`path` made absolute, without following links: a run folder may be a link to a larger disk."""
    return Path(os.path.abspath(path))


def _portable(path: Path, folder: Path) -> str:
    path = _absolute(path)
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
