"""Tells which files of a folder are images and which are masks, and which mask belongs to which image."""

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from defectgen.errors import BadInputError
from defectgen.imaging.images import ALIASES, OTHER_FORMATS, ImageError, is_image_file, read_mask

MASK_FOLDERS: Final = ("masks", "ground_truth")
"""The folders of masks beside a folder of defects, or inside it."""
READERS: Final = 4  # threads that decode images

_SHOWN = 3  # names in a message
_LEFTOVERS = frozenset({  # of systems and archivers; people cannot see most of them
    "#recycle", "$recycle.bin", "@eadir", "__macosx", "desktop.ini", "lost+found", "system volume information",
    "thumbs.db",
})  # fmt: skip
_MASK_SUFFIX = re.compile(r"[-_](masks?|labels?|gt|ground_?truth|seg|segmentation)$", re.IGNORECASE)


# --- Files ------------------------------------------------------------------------------------------------------


def listed(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files and those that systems leave behind.

    Raises:
        BadInputError: the folder cannot be read.
    """
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".") and path.name.lower() not in _LEFTOVERS and wanted(path)
        )
    except OSError as error:
        raise BadInputError(f"{folder}: {error.strerror}") from error


def image_files(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted by name. Anything but a folder counts: a broken link is a bad file."""
    return listed(folder, lambda path: is_image_file(path) and not path.is_dir())


def unread_formats(folder: Path) -> list[str]:
    """A line about images in a folder whose formats are not read; none if there are none."""
    paths = listed(folder, lambda path: path.suffix.lower() in ALIASES | OTHER_FORMATS)
    one, many = "image has a format that is not read", "images have formats that are not read"
    return [about(paths, one, many, "convert to PNG")] if paths else []


def unread_folders(folder: Path) -> list[str]:
    """A line about folders of images in a folder of images, where they are not read; none if there are none."""
    paths = listed(folder, lambda path: path.is_dir() and path.name not in MASK_FOLDERS and bool(image_files(path)))
    one, many = "folder of images is not read", "folders of images are not read"
    return [about(paths, one, many, "other images lie beside them; move all into one folder")] if paths else []


def stem(path: Path) -> str:
    """The name that an image and its mask share, without the suffix, in one Unicode form: those of a Mac differ."""
    return normalized(path.name if path.is_dir() else path.stem)


def normalized(name: str) -> str:
    """A name in the composed Unicode form (NFC)."""
    return unicodedata.normalize("NFC", name)


def is_mask(path: Path) -> bool:
    """Whether a file is a mask by its pixels: two values, 0 and 255 or 1."""
    try:
        read_mask(path)
    except ImageError:
        return False
    return True


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def about(paths: Sequence[Path], singular: str, plural: str, advice: str = "") -> str:
    """One line about files: `FOLDER: 2 images are small (a.png, b.png); ADVICE`."""
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    names = some(str(path.relative_to(folder)) for path in paths)
    what = f"1 {singular}" if len(paths) == 1 else f"{len(paths)} {plural}"
    return f"{folder}: {what} ({names})" + (f"; {advice}" if advice else "")


# --- Masks in folders of their own ------------------------------------------------------------------------------


def masks_in(
    roots: Sequence[Path], names: Sequence[str], images: Sequence[Path], categories: Collection[str]
) -> list[Path]:
    """The masks for the images of a category, from the first folder that has any: `ROOT/NAME`, or `ROOT` itself.

    A folder that is named after an image holds the masks of that image.
    """
    stems = {stem(path) for path in images} - {normalized(category) for category in categories}
    for place in mask_places(roots, names):
        masks = image_files(place)
        masks += listed(place, lambda path: stem(path) in stems and path.is_dir() and bool(image_files(path)))
        if masks:
            return masks
    return []


def mask_places(roots: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """The folders that exist of `ROOT/NAME`, in any Unicode form, and `ROOT`, in this order."""
    places: list[Path] = []
    for root in filter(Path.is_dir, roots):
        inner = {normalized(path.name): path for path in listed(root, Path.is_dir)}
        places += [inner[normalized(name)] for name in names if normalized(name) in inner]
        places.append(root)
    return places


def match(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each image that has one: it has the image's name, with or without `_mask` or the like.

    `a.jpg.png` is one of `a.jpg`, too: so `inspect` names its masks.

    Raises:
        BadInputError: a mask may belong to several images, or an image has several masks.
    """
    named, whole = _by_stem(images), {normalized(image.name): image for image in images}
    claims: dict[Path, list[Path]] = {}
    for mask in masks:
        own = dict.fromkeys((stem(mask), _MASK_SUFFIX.sub("", stem(mask))))
        claims[mask] = [image for name in own for image in named.get(name, ())]
        claims[mask] = claims[mask] or [whole[name] for name in own if name in whole]
    claims = {mask: claimed for mask, claimed in claims.items() if claimed}
    found: dict[Path, Path] = {}
    while claims:  # a mask that fits one image alone may leave another mask only one
        clear = [mask for mask, claimed in claims.items() if sum(image not in found for image in claimed) <= 1]
        if not clear:
            mask, claimed = next(iter(claims.items()))
            raise shared_mask(mask, claimed)
        for mask in clear:
            claimed = claims.pop(mask)
            image = next((each for each in claimed if each not in found), None)
            if image is None:
                raise _two_masks(claimed[0], found[claimed[0]], mask)
            found[image] = mask
    return found


def shared_mask(mask: Path, images: Sequence[Path]) -> BadInputError:
    """The error for a mask that several images claim."""
    return BadInputError(
        f"{mask}: is it the mask of {' or of '.join(map(str, images[:_SHOWN]))}? Give each image a name and a mask of "
        "its own"
    )


def _two_masks(image: Path, first: Path, second: Path) -> BadInputError:
    return BadInputError(f"{image}: has two masks, {first} and {second}; keep one")


def _by_stem(paths: Iterable[Path]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for path in paths:
        named.setdefault(stem(path), []).append(path)
    return named


# --- Masks beside their images ----------------------------------------------------------------------------------


def match_beside(
    paths: Sequence[Path],
    masked: Mapping[Path, Path],
    images: Collection[Path] = (),
    is_mask: Callable[[Path], bool] = is_mask,
) -> tuple[dict[Path, Path], list[str]]:
    """The masks that lie among their images, by image, and warnings.

    Such a mask has its image's name with another suffix, or with `_mask` or the like. `masked` are the masks that lie
    elsewhere, by image, and `images` are files that are known to be images. `is_mask` tells a mask by its pixels.

    Raises:
        BadInputError: it is not clear which file is the mask.
    """
    free = [path for path in paths if path not in masked and path not in images]
    named = _by_stem(paths)
    twins = [group for group in named.values() if len(group) > 1 and any(path in free for path in group)]
    are_masks = _are_masks({path for group in twins for path in group if path in free}, is_mask)
    beside: dict[Path, Path] = {}
    lines = []
    for group in twins:
        masks = [path for path in group if are_masks.get(path)]
        if not masks:
            lines.append(about(group, "", "images have one name", "is one of them a mask? Write it as 0 and 255"))
        elif len(group) == 2 and len(masks) == 1:
            (image,) = (path for path in group if path not in masks)
            beside[image] = masks[0]
        else:
            raise BadInputError(f"{masks[0]}: of which image is it the mask? {some(map(str, group))} have one name")
    taken = {*beside.values()}
    for path in free:
        base = _MASK_SUFFIX.sub("", stem(path))
        owners = [image for image in named.get(base, ()) if image not in taken] if base != stem(path) else []
        if not owners or path in taken or path in beside:
            continue
        if len(owners) > 1:
            raise shared_mask(path, owners)
        (owner,) = owners
        other = masked.get(owner) or beside.get(owner)
        if other is None:
            beside[owner] = path
        elif is_mask(path):
            raise _two_masks(owner, other, path)
    if beside:
        one, many = (
            "file is taken as the mask of the image beside it",
            "files are taken as masks of the images beside them",
        )
        lines.append(about(sorted(beside.values()), one, many))
    if chain := next((path for path in beside.values() if path in beside), None):
        raise BadInputError(f"{chain}: is it an image or a mask? {beside[chain]} is named as its mask; rename one")
    return beside, lines


def without_masks(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Normal images without the masks that lie among them, and warnings. Such masks mark nothing."""
    named = _by_stem(paths)
    suspects = {path for group in named.values() if len(group) > 1 for path in group}
    suspects |= {path for path in paths if (base := _MASK_SUFFIX.sub("", stem(path))) != stem(path) and base in named}
    masks = {path for path, found in _are_masks(suspects, is_mask).items() if found}
    if not masks:
        return list(paths), []
    line = about(sorted(masks), "mask lies among normal images", "masks lie among normal images", "they are left out")
    return [path for path in paths if path not in masks], [line]


def _are_masks(paths: Collection[Path], wanted: Callable[[Path], bool]) -> dict[Path, bool]:
    with ThreadPoolExecutor(READERS, thread_name_prefix="masks") as pool:
        return dict(zip(paths, pool.map(wanted, paths), strict=True))
