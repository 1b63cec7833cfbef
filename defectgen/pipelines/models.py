"""The trained models: list those that the lists name, and add one from elsewhere."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from defectgen import files
from defectgen.errors import BadInputError, UsageError, WeightsError
from defectgen.models import registry
from defectgen.models.registry import Entry
from defectgen.text import slug


@dataclass(frozen=True)
class ListedModel:
    """A model, the list that names it, and whether it can be used."""

    entry: Entry
    weights: Path
    """The list of models."""
    size: int | None
    """Bytes of its file; None if there is none."""
    state: str
    """`ok`, or what is wrong."""

    @property
    def steps(self) -> str:
        """How long it was trained, for people; empty for a memory bank, which learns in no steps."""
        if self.entry.method == registry.MEMORY_BANK:
            return ""
        return f"{self.entry.steps:,} steps" if self.entry.steps else "steps unknown"

    def record(self) -> dict[str, Any]:
        """Everything about the model, as JSON takes it."""
        return {
            **self.entry.model_dump(mode="json"),
            "size": self.size,
            "state": self.state,
            "weights": str(self.weights),
        }


def list_models(weights: Path | None = None) -> list[ListedModel]:
    """The models of `weights`, or of all lists that are searched: those of the user, then those that ship.

    Raises:
        WeightsError: a list cannot be read.
    """
    return [_listed(entry, file) for file in registry.find_registry(weights) for entry in registry.read(file)]


def names_of_models(weights: Path | None = None) -> list[str]:
    """The names of the models, each once, without a look at their files."""
    return list(dict.fromkeys(entry.name for file in registry.find_registry(weights) for entry in registry.read(file)))


def _listed(entry: Entry, weights: Path) -> ListedModel:
    size = entry.file.stat().st_size if os.path.isfile(entry.file) else None
    state = entry.unusable() or entry.unfinished or "ok"
    if size is not None:
        try:
            registry.verify(entry)
        except WeightsError:
            state = "the file was altered, or cannot be read"
    return ListedModel(entry, weights, size, state)


def import_model(
    source: Path,
    *,
    name: str | None = None,
    out: Path = Path("runs"),
    weights: Path | None = None,
    warn: Callable[[str], object] = lambda _: None,
) -> ListedModel:
    """Copy a model from elsewhere into `out`, below its name, and add it to the list. Nothing is overwritten.

    Args:
        source: a run folder, or the file of a model.
        name: its name here; None means that of the folder.
        warn: called with what is not as it was where the model comes from.

    Raises:
        BadInputError: there is no model.
        WeightsError: the model is damaged, or its method is not installed.
        UsageError: the name is taken, or cannot be one.
    """
    file = source / registry.MODEL if source.is_dir() else source
    if not file.is_file():
        raise BadInputError(f"{source}: no model here; give a folder with a {registry.MODEL}, such as runs/NAME")
    name = name if name is not None else file.absolute().parent.name
    if name != slug(name):
        raise UsageError(f"{name}: no name for a model; choose one with --name, such as {slug(name)}")
    target, list_file = out / name, registry.find_writable(weights)
    registry.check_name(name, target / registry.MODEL, list_file)
    with files.locked(target):
        if not files.vacant(target):
            raise UsageError(f"{target}: not empty; choose another --name or --out")
        entry = _entry(file, name, target / registry.MODEL, warn)
        copies = {target / registry.MODEL: file, target / registry.BACKBONE: file.with_name(registry.BACKBONE)}
        try:
            for copy, original in copies.items():
                if original.is_file():
                    files.write(copy, original.read_bytes())
            registry.verify(entry)
            registry.add(entry, list_file)
        except BaseException:
            for copy in copies:
                copy.unlink(missing_ok=True)
            raise
    return _listed(entry, list_file)


def _entry(file: Path, name: str, target: Path, warn: Callable[[str], object]) -> Entry:
    """The entry of a model that is to lie at `target`: what its file says, and what the list says that it comes from.

    Raises:
        WeightsError: the file is damaged, or its method is not installed.
    """
    sha256 = files.sha256(file)
    about = _about(file, name, warn)
    before = _entry_before(file, sha256)
    normals = {product: folder for product, folder in (before.trained_on if before else {}).items() if folder.is_dir()}
    if not normals and about["method"] != registry.MEMORY_BANK:
        warn(f"{name}: the normals that it was trained on are not here; 'synthesize' needs --normals DIR")
    return Entry(
        name=name,
        file=target.absolute(),
        sha256=sha256,
        created=before.created if before else datetime.fromtimestamp(int(file.stat().st_mtime), timezone.utc),
        trained_on=normals,
        stopped=before.stopped if before else False,
        **about,
    )


def _about(file: Path, name: str, warn: Callable[[str], object]) -> dict[str, Any]:
    """What a file says of its model, as fields of the entry."""
    import torch  # local imports: a list of models needs no PyTorch

    from defectgen.models import checkpoint, model
    from defectgen.pipelines import judges

    _, record = checkpoint.load(file, "method", "task")
    if record["method"] == registry.MEMORY_BANK:
        judges.load(file, "cpu")
        return judges.entry_fields(name, record["task"]["categories"])
    loaded = model.load(file, torch.device("cpu"))
    if not loaded.trained_on:
        warn(f"{name}: does not say which images it was trained on, so that 'evaluate' cannot tell them from others")
    return {
        "method": loaded.info.name,
        "categories": loaded.task.domains[1:],
        "products": loaded.task.products,
        "image_size": loaded.method.config.image_size,
        "channels": loaded.task.channels,
        "steps": loaded.steps or None,
    }


def _entry_before(file: Path, sha256: str) -> Entry | None:
    """The entry of a model's file in the list of the folder that it comes from, or of one above."""
    for folder in file.absolute().parents:
        if (folder / registry.NAME).is_file():
            try:
                entries = registry.read(folder / registry.NAME)
            except WeightsError:  # not the list of this user, who cannot mend it
                return None
            return next((entry for entry in entries if entry.sha256 == sha256), None)
    return None
