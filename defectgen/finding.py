"""Finds the images in folders of the common layouts, and the mask of each."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from defectgen import annotations, files, label_table
from defectgen.annotated import (
    MANIFEST,
    about_images,
    about_shapes,
    drawn_mask,
    free_of_defects,
    none_annotated,
    read_folder,
    without_marked,
)
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.mask_files import Mask
from defectgen.marking import MASKS, Marking
from defectgen.mask_matching import (
    MASK_FOLDERS,
    about,
    image_files,
    listed,
    mask_places,
    masks_in,
    match,
    match_beside,
    normalized,
    shared_mask,
    some,
    unread_folders,
    unread_formats,
    without_masks,
)

NORMAL: Final = "normal"

NORMAL_FOLDERS: Final = ("good", "normal", "normals")
"""The folders of normals in or beside one of defects."""
_LAYOUTS = "expected images, or a folder of images for each category (README.md, Folders)"


class ProductFolders(BaseModel):
    """The folders of one product, as given by the user."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product: str
    normals: Path
    defects: Path | None
    masks: Path | None = None
    marking: Marking = MASKS


@dataclass(frozen=True)
class Found:
    """A file that has been found but not read yet."""

    path: Path
    mask: Mask | None
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


def find_normals(folder: Path, product: str, marking: Marking = MASKS, defects: Path | None = None) -> Part:
    """The normal images in a folder.

    With annotations, images with annotated defects are left out. If it is also the folder of the defects, so are
    those that the annotations do not list as free of defects.

    Raises:
        BadInputError: there are none.
    """
    shared = marking.annotations is not None and defects is not None and folder.resolve() == defects.resolve()
    if shared:
        paths, lines = free_of_defects(folder, marking), list[str]()
    else:
        paths, about_masks = without_masks(_images_of(folder, "are these defects, and the two folders swapped?"))
        lines = [*unread_formats(folder), *unread_folders(folder), *about_masks]
        if marking.annotations is None:
            lines += annotations.beside([folder])
        else:
            paths, about_marked = without_marked(paths, marking, defects)
            lines += about_marked
    found = tuple(Found(path=path, mask=None, category=NORMAL, product=product) for path in paths)
    return Part(folder=folder, found=found, warnings=tuple(lines))


def find_labeled(folder: Path, marking: Marking = MASKS) -> list[Part]:
    """The normals, and the defects with their masks, of a labeled folder.

    Defects have a folder for each category in `defects`, in MVTec AD's `test`, or in the folder itself; normals are in
    `good`, `normal` or `normals`, among or beside these. With annotations, images that these list as free of defects
    are normals, too, and folders say nothing else.

    Raises:
        BadInputError: there are no normals or no defects, or as `find_defects`.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder; give a labeled one")
    if marking.annotations is not None:
        good = next((folder / name for name in NORMAL_FOLDERS if (folder / name).is_dir()), None)
        source = ProductFolders(product="product", normals=good or folder, defects=folder, marking=marking)
        parts = [find_normals(good, source.product, marking)] if good else []
        if good is None or read_folder(folder, marking, good).free:
            parts.append(find_normals(folder, source.product, marking, folder))
        return [*parts, find_defects(source, folder, ())]
    defects = next((folder / name for name in ("defects", "test") if (folder / name).is_dir()), folder)
    places = (parent / name for parent in (defects, defects.parent) for name in NORMAL_FOLDERS)
    normals = next((place for place in places if place.is_dir() and not place.samefile(defects)), None)
    if normals is None:
        more = "".join(f"; {line}" for line in annotations.beside([folder]))
        raise BadInputError(
            f"{folder}: no normals in it; a labeled folder has a folder for each category of defects, and one of "
            f"normals: {', '.join(NORMAL_FOLDERS)}{more}"
        )
    source = ProductFolders(product="product", normals=normals, defects=defects, marking=marking)
    part = find_defects(source, defects, (), flawless=NORMAL_FOLDERS)
    if not part.found:
        raise BadInputError(f"{defects}: no images of defects in it; {_LAYOUTS}")
    return [find_normals(normals, source.product), part]


def named_after(normals: Path) -> str:
    """The product that a folder of normals is named after: `steel` for steel/normals, steel/train/good or steel."""
    folder = normals.resolve()
    while folder.name in (*NORMAL_FOLDERS, "train") and folder.parent != folder:
        folder = folder.parent
    return folder.name


def find_defects(
    source: ProductFolders, defects: Path, wanted: Sequence[str], *, flawless: Collection[str] = ()
) -> Part:
    """The defect images in a folder, with their masks.

    Their categories are the folders', those of `labels.csv`, the labels of annotations, or those of a mask's values.

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
    marking = source.marking
    if marking.annotations is not None:
        if source.masks is not None:
            raise UsageError("--annotations replaces --masks: give one of them")
        return _find_annotated(source, defects, wanted)
    if (defects / MANIFEST).is_file() and source.masks is None and not marking.picked:
        return _find_made(source, defects, wanted)
    if marking.values:
        return _by_value(_find_in_folders(source, defects, (), flawless), marking, wanted)
    part = _find_in_folders(source, defects, wanted, flawless)
    if marking.threshold is None:
        return part
    found = (replace(e, mask=marking.of(e.mask, e.category) if isinstance(e.mask, Path) else None) for e in part.found)
    return replace(part, found=tuple(found))


def _find_in_folders(source: ProductFolders, defects: Path, wanted: Sequence[str], flawless: Collection[str]) -> Part:
    """As `find_defects`, where folders or `labels.csv` tell the categories."""
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
        _images_of(folder, f"are these the categories? Give {folder} in place of {defects}")
        lines += unread_formats(folder) + unread_folders(folder)
    for place in dict.fromkeys(place for group in chosen for place in mask_places(group.roots, group.names)):
        lines += unread_formats(place)
    lines += annotations.beside(dict.fromkeys(group.folder for group in chosen))
    masks, unused = _match_masks(groups, chosen)
    if labels is None:
        for group in chosen:
            beside, more = match_beside(group.paths, masks[group.category], is_mask=source.marking.is_mask)
            masks[group.category] |= beside
            lines += more
        pairs = [(path, each.category) for each in chosen for path in each.paths]
    else:
        beside, more = match_beside(
            flat,
            {path: mask for each in masks.values() for path, mask in each.items()},
            labels,
            source.marking.is_mask,
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


def _find_made(source: ProductFolders, dataset: Path, wanted: Sequence[str]) -> Part:
    """The samples of a dataset of defectgen's own, in any layout, with their masks.

    Raises:
        UsageError: a category does not exist.
        BadInputError: the manifest is damaged, or names a file that is not inside.
    """
    manifest = dataset / MANIFEST
    *lines, last = manifest.read_bytes().split(b"\n")
    lines += [last] if last.endswith(b"}") else []  # a killed run leaves half a line
    found, missing = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            image, mask = (files.inside(dataset, row[key]) for key in ("image", "mask"))
            category = normalized(row["category"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{manifest}: line {number} cannot be read; make the dataset again") from error
        if image.is_file() and mask.is_file():
            found.append(Found(path=image, mask=mask, category=category, product=source.product))
        else:
            missing += 1
    names = sorted({each.category for each in found})
    if not names:
        raise BadInputError(f"{manifest}: no samples")
    if unknown := set(wanted) - set(names):
        raise UsageError(f"--category {min(unknown)}: {manifest} has {', '.join(names)}")
    warnings = [f"{manifest}: {missing} of {missing + len(found)} samples are missing"] if missing else []
    chosen = tuple(each for each in found if each.category in (wanted or names))
    return Part(folder=dataset, found=chosen, warnings=tuple(warnings))


def _find_annotated(source: ProductFolders, defects: Path, wanted: Sequence[str]) -> Part:
    """The images with annotated defects in a folder and below: once for each category, with the mask of that."""
    marking = source.marking
    shared = source.normals.resolve() == defects.resolve()
    found = read_folder(defects, marking, None if shared else source.normals)
    shapes = {path: found.shapes(path) for path in found.paths}
    names = sorted({name for of in shapes.values() for name in of} - {""})
    if not names:
        raise none_annotated(defects, marking, found)
    if unknown := set(wanted) - set(names):
        raise UsageError(f"--category {min(unknown)}: {marking.annotations} has {', '.join(names)}")
    if NORMAL in (wanted or names):
        raise BadInputError(
            f"{marking.annotations}: the label '{NORMAL}' is reserved for images without defects; rename it"
        )
    pairs = [(path, name) for path in found.paths for name in sorted(shapes[path]) if name in (wanted or names)]
    lines = [*marking.read.warnings, *about_images(found, defects, marking, shared=shared)]
    lines += about_shapes([shape for path, name in pairs for shape in shapes[path][name]], marking)
    if unlabeled := [path for path, of in shapes.items() if "" in of]:
        lines.append(about(unlabeled, "image has shapes without a label", "images have shapes without a label",
                           "these are not read"))  # fmt: skip
    return Part(
        folder=defects,
        found=tuple(
            Found(path, drawn_mask(found.listed[path], name, shapes[path][name], marking), name, source.product)
            for path, name in pairs
        ),
        warnings=tuple(lines),
    )


# --- Masks of several values ------------------------------------------------------------------------------------


def _by_value(part: Part, marking: Marking, wanted: Sequence[str]) -> Part:
    """The images of a part once for each category that the values of their masks stand for."""
    names = sorted({name for _, name in marking.values})
    if unknown := set(wanted) - set(names):
        raise UsageError(f"--category {min(unknown)}: --mask-values names {', '.join(names)}")
    if NORMAL in names:
        raise UsageError(f"--mask-values: the name '{NORMAL}' is reserved for images without defects")
    masks = {each.path: each.mask for each in part.found if isinstance(each.mask, Path)}
    shown, lines = marking.categories(list(dict.fromkeys(masks.values())))
    product = part.found[0].product if part.found else ""
    found = [
        Found(path, marking.of(mask, name), name, product)
        for path, mask in masks.items()
        for name in shown[mask]
        if name in (wanted or names)
    ]
    one, many = "image has no mask with a named value", "images have no mask with a named value"
    if blank := [path for path in dict.fromkeys(e.path for e in part.found) if not shown.get(masks.get(path, path))]:
        lines.append(about(blank, one, many, "left out"))
    return replace(part, found=tuple(found), warnings=(*part.warnings, *lines))


# --- Folders ----------------------------------------------------------------------------------------------------


def _images_of(folder: Path, inside: str = _LAYOUTS) -> list[Path]:
    """The images directly in a folder, sorted by name. Raises BadInputError if there are none.

    Args:
        inside: what to do if there are folders of images in it.
    """
    paths = image_files(folder)
    if not paths:
        inner = listed(folder, lambda path: path.is_dir() and bool(image_files(path)))
        if inner:
            names = some(path.name for path in inner)
            raise BadInputError(f"{folder}: no images, but folders of images ({names}): {inside}")
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
