"""Finds the images in folders of the common layouts, and the mask of each."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from defectgen import files, label_table
from defectgen.errors import BadInputError, UsageError
from defectgen.mask_matching import (
    MASK_FOLDERS,
    image_files,
    listed,
    mask_places,
    masks_in,
    match,
    match_beside,
    normalized,
    shared_mask,
    unread_folders,
    unread_formats,
    without_masks,
)

NORMAL: Final = "normal"

NORMAL_FOLDERS: Final = ("good", "normal", "normals")
"""The folders of normals in or beside one of defects."""
_LAYOUTS = "expected images, or a folder of images for each category (README.md, train)"


class ProductFolders(BaseModel):
    """The folders of one product, as given by the user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product: str
    normals: Path
    defects: Path | None
    masks: Path | None = None


@dataclass(frozen=True)
class Found:
    """A file that has been found but not read yet."""

    path: Path
    mask: Path | None
    category: str
    product: str


@dataclass(frozen=True)
class Part:
    """What has been found in a folder. `unused` are masks, and folders of masks, that belong to no image."""

    folder: Path
    found: tuple[Found, ...]
    warnings: tuple[str, ...]
    unused: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Group:
    """A category, its images, their folder, and where masks may be: in folders of these names in a root, or in it."""

    category: str
    folder: Path
    paths: Sequence[Path]
    roots: Sequence[Path]
    names: Sequence[str]


def find_normals(folder: Path, product: str) -> Part:
    """The normal images in a folder. Raises BadInputError if there are none."""
    paths, lines = without_masks(_images_of(folder))
    found = tuple(Found(path=path, mask=None, category=NORMAL, product=product) for path in paths)
    return Part(folder=folder, found=found, warnings=(*unread_formats(folder), *unread_folders(folder), *lines))


def find_labeled(folder: Path) -> list[Part]:
    """The normals, and the defects with their masks, of a labeled folder.

    Defects have a folder for each category in `defects`, in MVTec AD's `test`, or in the folder itself; normals are in
    `good`, `normal` or `normals`, among or beside these.

    Raises:
        BadInputError: there are no normals or no defects, or as `find_defects`.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder; give a labeled one")
    defects = next((folder / name for name in ("defects", "test") if (folder / name).is_dir()), folder)
    places = (parent / name for parent in (defects, defects.parent) for name in NORMAL_FOLDERS)
    normals = next((place for place in places if place.is_dir() and not place.samefile(defects)), None)
    if normals is None:
        raise BadInputError(
            f"{folder}: no normals in it; a labeled folder has a folder for each category of defects, and one of "
            f"normals: {', '.join(NORMAL_FOLDERS)}"
        )
    source = ProductFolders(product="product", normals=normals, defects=defects)
    part = find_defects(source, defects, (), flawless=NORMAL_FOLDERS)
    if not part.found:
        raise BadInputError(f"{defects}: no images of defects in it; {_LAYOUTS}")
    return [find_normals(normals, source.product), part]


def find_defects(
    source: ProductFolders, defects: Path, wanted: Sequence[str], *, flawless: Collection[str] = ()
) -> Part:
    """The defect images in a folder, with their masks.

    Args:
        wanted: the categories to find; empty means all. A single one names the images of a flat folder.
        flawless: folders among those of the categories that hold normals, and are left out.

    Raises:
        UsageError: a category does not exist.
        BadInputError: the folder has no known layout, or it is not clear which mask belongs to which image.
    """
    wanted = list(map(normalized, wanted))
    if not defects.is_dir():
        raise BadInputError(f"{defects}: no such folder")
    if source.masks is not None and not source.masks.is_dir():
        raise BadInputError(f"--masks {source.masks}: no such folder")
    flat, table = image_files(defects), defects / label_table.NAME
    labels = _read_labels(table, flat) if flat and table.is_file() else None
    groups = _groups(source, defects, flat, labels, wanted, flawless)
    names = [group.category for group in groups]
    if unknown := set(wanted) - set(names):
        where = defects if labels is None else table
        raise UsageError(f"--category {min(unknown)}: {where} has {', '.join(sorted(names))}")
    chosen = [group for group in groups if group.category in (wanted or names)]
    lines = [] if flat else unread_formats(defects)
    for folder, name in {group.folder: group.category for group in chosen}.items():
        if name == NORMAL:
            raise BadInputError(f"{folder}: the name '{NORMAL}' is reserved for images without defects; rename it")
        _images_of(folder)
        lines += unread_formats(folder) + unread_folders(folder)
    for place in dict.fromkeys(place for group in chosen for place in mask_places(group.roots, group.names)):
        lines += unread_formats(place)
    masks, unused = _match_masks(groups, chosen)
    if labels is None:
        for group in chosen:
            beside, more = match_beside(group.paths, masks[group.category])
            masks[group.category] |= beside
            lines += more
        pairs = [(path, each.category) for each in chosen for path in each.paths]
    else:
        beside, more = match_beside(
            flat, {path: mask for each in masks.values() for path, mask in each.items()}, labels
        )
        if missing := sorted(path.name for path in flat if path not in labels and path not in beside.values()):
            raise BadInputError(f"{table}: {missing[0]} is not listed{' (and others)' if len(missing) > 1 else ''}")
        masks = {category: {**beside, **each} for category, each in masks.items()}
        lines += more
        pairs = [(path, name) for path in flat for name in labels.get(path, ()) if name in (wanted or names)]
    taken = {mask for each in masks.values() for mask in each.values()}
    found = tuple(
        Found(path=path, mask=masks[category].get(path), category=category, product=source.product)
        for path, category in pairs
        if path not in taken
    )
    if source.masks is not None and not any(each.mask for each in found):
        raise _unmatched_masks(source.masks, found[0].path)
    unused += _unused_folders(source, defects, groups, masked=bool(taken))
    return Part(folder=defects, found=found, warnings=tuple(lines), unused=tuple(unused))


def _images_of(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted by name. Raises BadInputError if there are none."""
    paths = image_files(folder)
    if not paths:
        found = ", ".join(path.name for path in listed(folder, lambda _: True)[:5]) or "nothing"
        unread = "".join(f"; {line.removeprefix(f'{folder}: ')}" for line in unread_formats(folder))
        raise BadInputError(f"{folder}: no images; found {found}; {_LAYOUTS}{unread}")
    return paths


def _read_labels(table: Path, paths: Sequence[Path]) -> dict[Path, list[str]]:
    """The categories of each image of a flat folder that `labels.csv` lists."""
    by_name = {normalized(path.name): path for path in paths}
    labels = label_table.read_labels(table, by_name, NORMAL)
    if missing := sorted(labels.keys() - by_name):
        raise BadInputError(f"{table}: {missing[0]} is not in the folder{' (and others)' if len(missing) > 1 else ''}")
    return {by_name[name]: categories for name, categories in labels.items()}


def _groups(
    source: ProductFolders,
    defects: Path,
    flat: Sequence[Path],
    labels: Mapping[Path, Sequence[str]] | None,
    wanted: Sequence[str],
    flawless: Collection[str],
) -> list[_Group]:
    """The categories of a folder: those of `labels.csv`, a single one if the folder is flat, or one for each folder."""
    roots = [source.masks] if source.masks else [defects.parent / name for name in MASK_FOLDERS]
    inside = [] if source.masks else [defects / name for name in MASK_FOLDERS]
    if labels is not None:
        names = sorted({name for categories in labels.values() for name in categories})
        return [
            _Group(name, defects, [path for path in flat if name in labels.get(path, ())], roots + inside, [name])
            for name in names
        ]
    if flat:  # it may be one of several category folders
        above = [] if source.masks else [defects.parent.parent / name for name in MASK_FOLDERS]
        name = wanted[0] if len(wanted) == 1 else normalized(defects.resolve().name)
        names = list(dict.fromkeys((defects.name, name)))
        return [_Group(name, defects, flat, roots + above + inside, [each for each in names if each])]
    folders = [folder for folder in listed(defects, Path.is_dir) if folder.name not in (*MASK_FOLDERS, *flawless)]
    if (defects.parent / "train" / "good").is_dir():
        folders = [folder for folder in folders if folder.name != "good"]
    if not folders:
        _images_of(defects)
    return [
        _Group(
            normalized(folder.name),
            folder,
            image_files(folder),
            roots + inside + ([] if source.masks else [folder / name for name in MASK_FOLDERS]),
            [folder.name],
        )
        for folder in folders
    ]


def _match_masks(groups: Sequence[_Group], chosen: Sequence[_Group]) -> tuple[dict[str, dict[Path, Path]], list[Path]]:
    """The masks that lie in folders of their own, by category and image, and those that belong to no image.

    Raises:
        BadInputError: a mask may belong to several images, or the masks of a category match none.
    """
    categories = [group.category for group in groups]
    found: dict[str, dict[Path, Path]] = {}
    claims: dict[Path, dict[Path, None]] = {}
    unused: list[Path] = []
    for group in groups:
        masks = masks_in(group.roots, group.names, group.paths, categories)
        matched = match(group.paths, masks)
        found.setdefault(group.category, {}).update(matched)  # two folders may differ in Unicode form alone
        for path, mask in matched.items():
            claims.setdefault(mask, {})[path] = None
        if group in chosen:
            if masks and not matched and masks[0].parent not in group.roots:
                raise _unmatched_masks(masks[0], group.paths[0])
            unused += masks
    for mask, paths in claims.items():  # equal names in several categories; the same file twice is one image
        if len(paths) > 1 and len({files.sha256(path) for path in paths if path.is_file()}) > 1:
            raise shared_mask(mask, list(paths))
    return found, [mask for mask in dict.fromkeys(unused) if mask not in claims]


def _unused_folders(source: ProductFolders, defects: Path, groups: Sequence[_Group], *, masked: bool) -> list[Path]:
    """Folders of masks that belong to no category. Of a flat folder, they may be those of its sisters."""
    names = {normalized(name) for group in groups for name in (group.category, *group.names)} | {"good"}
    flat = any(group.folder == defects for group in groups)
    roots = [source.masks] if source.masks else [defects.parent / name for name in MASK_FOLDERS]
    return [
        folder
        for root in roots
        if root.is_dir() and not (flat and masked)
        for folder in listed(root, Path.is_dir)
        if normalized(folder.name) not in names and not (defects.parent / folder.name).is_dir() and image_files(folder)
    ]


def _unmatched_masks(masks: Path, image: Path) -> BadInputError:
    """The error for masks that match no image: without it, misnamed masks would be ignored silently."""
    return BadInputError(
        f"{masks}: no mask is named after its image; the mask of {image.name} must be called {image.stem}.png or "
        f"{image.stem}_mask.png, in a folder {image.parent.name} if there are several categories"
    )
