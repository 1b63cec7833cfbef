"""Reads folders of images in the common layouts into a catalog: the product, category and mask of each image."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from defectgen import files
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import ImageError, is_image_file, read_image, read_mask

NORMAL: Final = "normal"
DEFECT: Final = "defect"
"""The single category of a method that does not distinguish categories of defects."""
OnBad = Literal["skip", "fail"]
OnFile = Callable[[int, int], None]

_LAYOUTS = "expected images, or a folder of images for each category (README.md, train)"
_LABELS = "labels.csv"
_MASK_FOLDERS = ("masks", "ground_truth")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceImage(_Record):
    """A readable image and its category. Sizes are in pixels, `channels` is 1 or 3, `depth` is 8 or 16 bits.

    An image that shows several categories has one record for each. `also` lists the other categories and their masks.
    """

    path: Path
    mask: Path | None
    category: str
    product: str
    height: int
    width: int
    channels: int
    depth: int
    also: tuple[tuple[str, Path | None], ...] = ()


class Skipped(_Record):
    """A file that cannot be used, and the reason."""

    path: Path
    reason: str


class ProductFolders(_Record):
    """The folders of one product, as given by the user."""

    product: str
    normals: Path
    defects: Path | None
    masks: Path | None = None


class Catalog(_Record):
    """All images of a run, and the files that were skipped."""

    images: tuple[SourceImage, ...]
    skipped: tuple[Skipped, ...]

    @classmethod
    def of(cls, parts: "Iterable[Catalog]") -> "Catalog":
        """Merge several catalogs into one."""
        parts = list(parts)
        return cls(
            images=tuple(image for part in parts for image in part.images),
            skipped=tuple(each for part in parts for each in part.skipped),
        )

    @property
    def products(self) -> tuple[str, ...]:
        """The products of the images, sorted."""
        return tuple(sorted({image.product for image in self.images}))

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of the defects, sorted."""
        return tuple(sorted({image.category for image in self.images} - {NORMAL}))


def limits_of(catalog: Catalog, ranges: Mapping[str, tuple[float, float]]) -> dict[Path, tuple[float, float]]:
    """The range of each image whose product has one."""
    return {image.path: ranges[image.product] for image in catalog.images if image.product in ranges}


class _Found(_Record):
    """A file that has been found but not read yet."""

    path: Path
    mask: Path | None
    category: str
    product: str


def parse_product(text: str) -> ProductFolders:
    """Parse `NAME=NORMALS:DEFECTS`. Paths may contain colons: the split is the one where both folders exist.

    Raises:
        UsageError: the text has another form.
        BadInputError: no split gives two existing folders.
    """
    name, equals, folders = text.partition("=")
    pairs = [
        (Path(folders[:i]), Path(folders[i + 1 :]))
        for i, letter in enumerate(folders)
        if letter == ":" and folders[:i] and folders[i + 1 :]
    ]
    existing = [pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()]
    if not equals or not name.strip() or not pairs:
        raise UsageError(f"--product {text}: give NAME=NORMALS:DEFECTS")
    if not existing:
        raise BadInputError(f"--product {text}: no such folders; give two, separated by a colon: NORMALS:DEFECTS")
    return ProductFolders(product=name.strip(), normals=existing[0][0], defects=existing[0][1])


def read_catalog(
    sources: Sequence[ProductFolders],
    *,
    category: str | None = None,
    on_bad: OnBad = "skip",
    progress: OnFile | None = None,
) -> Catalog:
    """Find and read all images of `sources`.

    >>> import defectgen
    >>> from pathlib import Path
    >>> part = defectgen.ProductFolders(product="part", normals=Path("photos/normals"), defects=Path("photos/defects"))
    >>> catalog = defectgen.read_catalog([part])
    >>> catalog.categories, len(catalog.images), len(catalog.skipped)
    (('crack', 'scratch', 'spot'), 38, 0)

    Args:
        category: the category of the images in a flat folder, or the one to use of several category folders.
        on_bad: whether to skip unreadable files, or fail on them.
        progress: called after each file with the number read and the total.

    Raises:
        UsageError: `category` does not exist.
        BadInputError: a folder is missing or has no known layout; a mask and its image differ in size;
            no usable image is left; a file is unreadable and `on_bad` is "fail".
    """
    found: list[_Found] = []
    for source in sources:
        normals, defects = _mvtec(source)
        found += [
            _Found(path=path, mask=None, category=NORMAL, product=source.product) for path in _image_files(normals)
        ]
        if defects is None:
            raise BadInputError(f"{source.normals}: no folder of defects is given; give it after this one")
        found += _find_defects(source, defects, category)
    catalog = _read(found, on_bad, progress)
    for product in {source.product for source in sources}:
        for what in ("normals", "defects"):
            if not any(s.product == product and (s.category == NORMAL) == (what == "normals") for s in catalog.images):
                raise BadInputError(f"{product}: no usable {what}: {_reasons(catalog.skipped)}")
    return catalog


def read_normals(folder: Path, *, product: str = "product", on_bad: OnBad = "skip") -> Catalog:
    """Read normal images only, from a flat folder or an MVTec AD category folder. Raises as `read_catalog`."""
    normals, _ = _mvtec(ProductFolders(product=product, normals=folder, defects=None))
    found = [_Found(path=path, mask=None, category=NORMAL, product=product) for path in _image_files(normals)]
    catalog = _read(found, on_bad, None)
    if not catalog.images:
        raise BadInputError(f"{folder}: no usable normals: {_reasons(catalog.skipped)}")
    return catalog


def read_defects(
    folder: Path,
    *,
    product: str = "defects",
    masks: Path | None = None,
    masked: bool = True,
    categories: Sequence[str] = (),
    on_bad: OnBad = "skip",
) -> Catalog:
    """Read defect images only, from a folder of defects as in `read_catalog` or an MVTec AD category folder.

    Args:
        masks: the folder of masks, if it is not beside the defects.
        masked: whether every image must have a mask.
        categories: the categories to read; empty for all. A single one names the images of a flat folder.

    Raises:
        UsageError: a category does not exist.
        BadInputError: as `read_catalog`, or a mask is missing.
    """
    if (folder / "train" / "good").is_dir() and (folder / "test").is_dir():
        folder = folder / "test"
    source = ProductFolders(product=product, normals=folder, defects=folder, masks=masks)
    found = _find_defects(source, folder, categories[0] if len(categories) == 1 else None)
    existing = {each.category for each in found}
    if unknown := set(categories) - existing:
        raise UsageError(f"--category {min(unknown)}: {folder} has {', '.join(sorted(existing))}")
    catalog = _read([each for each in found if each.category in (categories or existing)], on_bad, None)
    if not catalog.images:
        raise BadInputError(f"{folder}: no usable defects: {_reasons(catalog.skipped)}")
    if masked:
        require_masks(catalog)
    return catalog


def collapsed(category: str) -> str:
    """The category for a method that distinguishes only normal and defective images."""
    return category if category == NORMAL else DEFECT


def unite(catalog: Catalog) -> Catalog:
    """A copy of a catalog with `SourceImage.also` filled in.

    Two records are of the same image if their files have the same name and the same bytes, in different category
    folders or by `labels.csv`. The name alone does not suffice: many folders number their images from 1.
    """
    by_name: dict[tuple[str, str], list[SourceImage]] = {}
    for image in catalog.images:
        if image.category != NORMAL:
            by_name.setdefault((image.product, image.path.name), []).append(image)
    also: dict[tuple[Path, str], tuple[tuple[str, Path | None], ...]] = {}
    for group in by_name.values():
        if len({image.category for image in group}) == 1:
            continue
        hashes = [files.sha256(image.path) for image in group]
        for image, own in zip(group, hashes, strict=True):
            others = [o for o, its in zip(group, hashes, strict=True) if its == own and o.category != image.category]
            also[image.path, image.category] = tuple((other.category, other.mask) for other in others)
    images = (s.model_copy(update={"also": also.get((s.path, s.category), ())}) for s in catalog.images)
    return catalog.model_copy(update={"images": tuple(images)})


def require_masks(catalog: Catalog) -> None:
    """Check that every defect image has a mask.

    Raises:
        BadInputError: a mask is missing. The message says where masks belong.
    """
    defects = [image for image in catalog.images if image.category != NORMAL]
    unmasked = [image.path for image in defects if image.mask is None]
    if unmasked:
        raise BadInputError(
            f"{len(unmasked)} of {len(defects)} defect images have no mask (first: {unmasked[0]}); masks are needed to "
            "cut out defects: add them as described in README.md (train), or create them with `defectgen inspect`"
        )


def _mvtec(source: ProductFolders) -> tuple[Path, Path | None]:
    """The folders of normals and defects: MVTec AD's `train/good` and `test` if its root or `train` is given."""
    if not source.normals.is_dir():
        raise BadInputError(f"{source.normals}: no such folder")
    for root in (source.normals, source.normals.parent):
        good = root / "train" / "good"
        if good.is_dir() and source.normals in (root, root / "train"):
            return good, source.defects or (root / "test")
    return source.normals, source.defects


def _image_files(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted by name. Raises BadInputError if existing are none."""
    paths = _listed(folder, lambda path: not path.is_dir() and is_image_file(path))
    if not paths:
        found = ", ".join(path.name for path in islice(sorted(folder.iterdir()), 5)) or "nothing"
        raise BadInputError(f"{folder}: no images; found {found}; {_LAYOUTS}")
    return paths


def _listed(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and wanted(path))
    except OSError as error:
        raise BadInputError(f"{folder}: {error.strerror}") from error


def _find_defects(source: ProductFolders, defects: Path, category: str | None) -> list[_Found]:
    if not defects.is_dir():
        raise BadInputError(f"{defects}: no such folder")
    # Anything but a folder counts as a file, so that a broken link is reported as a bad file.
    flat = _listed(defects, lambda path: not path.is_dir() and is_image_file(path))
    if flat:
        folders = {category or defects.resolve().name: defects}
    else:
        folders = {folder.name: folder for folder in _listed(defects, Path.is_dir)}
        if (defects.parent / "train" / "good").is_dir():
            folders.pop("good", None)
        if not folders:
            _image_files(defects)
        if category is not None:
            if category not in folders:
                raise UsageError(f"--category {category}: {defects} has {', '.join(folders)}")
            folders = {category: folders[category]}
    if flat and (defects / _LABELS).is_file():
        return _read_labels(source, defects, flat, category)
    if NORMAL in folders:
        raise BadInputError(f"{folders[NORMAL]}: the name '{NORMAL}' is reserved for images without defects; rename it")
    found = []
    for name, folder in folders.items():
        paths, masks = _image_files(folder), _mask_index(source, defects, folder)
        has_masks = any(mask.parent.name == folder.name for mask in masks.values())
        if has_masks and not any(path.stem in masks for path in paths):
            raise _unmatched_masks(next(iter(masks.values())), paths[0])
        found += [_Found(path=path, mask=masks.get(path.stem), category=name, product=source.product) for path in paths]
    if source.masks is not None and not any(each.mask for each in found):
        raise _unmatched_masks(source.masks, found[0].path)
    return found


def _read_labels(source: ProductFolders, defects: Path, paths: Sequence[Path], wanted: str | None) -> list[_Found]:
    """The images of a flat folder, one record for each category that `labels.csv` lists."""
    table = defects / _LABELS
    try:
        rows = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{table}: not a CSV file in UTF-8: {error}") from error
    labels: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and row[0].strip().lower() == "file"):
            continue
        categories = [name.strip() for name in row[1].split(";")] if len(row) == 2 else []
        if not categories or "" in categories or NORMAL in categories:
            raise BadInputError(f"{table}: line {number}: expected FILE,CATEGORY;CATEGORY, without '{NORMAL}'")
        labels[row[0].strip()] = list(dict.fromkeys(categories))
    by_name = {path.name: path for path in paths}
    for problem, names in (
        ("is not listed", by_name.keys() - labels),
        ("is not in the folder", labels.keys() - by_name),
    ):
        if names:
            raise BadInputError(f"{table}: {sorted(names)[0]} {problem}{' (and others)' if len(names) > 1 else ''}")
    known = sorted({category for categories in labels.values() for category in categories})
    if wanted is not None and wanted not in known:
        raise UsageError(f"--category {wanted}: {table} has {', '.join(known)}")
    masks = {category: _mask_index(source, defects, defects / category) for category in known}
    return [
        _Found(path=path, mask=masks[category].get(path.stem), category=category, product=source.product)
        for path in paths
        for category in labels[path.name]
        if wanted in (None, category)
    ]


def _unmatched_masks(masks: Path, image: Path) -> BadInputError:
    """The error for masks that match no image: without it, misnamed masks would be ignored silently."""
    return BadInputError(
        f"{masks}: no mask is named after its image; the mask of {image.name} must be called {image.stem}.png or "
        f"{image.stem}_mask.png, in a folder {image.parent.name} if there are several categories"
    )


def _mask_index(source: ProductFolders, defects: Path, folder: Path) -> dict[str, Path]:
    """The masks of a category folder, keyed by the stem of the image that each belongs to."""
    if source.masks is not None and not source.masks.is_dir():
        raise BadInputError(f"--masks {source.masks}: no such folder")
    beside = [defects.parent / name for name in _MASK_FOLDERS]
    if folder == defects:  # a flat folder may be one of several category folders
        beside += [defects.parent.parent / name for name in _MASK_FOLDERS]
    index: dict[str, Path] = {}
    for root in [source.masks] if source.masks else beside:
        for place in (root / folder.name, root):
            if not place.is_dir():
                continue
            for path in _listed(place, lambda path: not path.is_dir() and is_image_file(path)):
                index.setdefault(path.stem.removesuffix("_mask"), path)
            if index:
                return index
    return index


def _read(found: Sequence[_Found], on_bad: OnBad, progress: OnFile | None) -> Catalog:
    """Decode every file. The catalog lists readable images and skipped files, both in the order of `found`."""
    images: list[SourceImage] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(4, thread_name_prefix="reading") as pool:
        for done, result in enumerate(pool.map(_read_one, found), start=1):
            if isinstance(result, SourceImage):
                images.append(result)
            else:
                skipped.append(result)
            if progress is not None:
                progress(done, len(found))
    catalog = Catalog(images=tuple(images), skipped=tuple(skipped))
    if skipped and on_bad == "fail":
        raise BadInputError(f"{len(skipped)} of {len(found)} files cannot be used: {_reasons(catalog.skipped)}")
    return catalog


def _read_one(found: _Found) -> SourceImage | Skipped:
    try:
        image = read_image(found.path)
        if found.mask is not None:
            mask = read_mask(found.mask)
            if mask.shape != (image.height, image.width):
                raise BadInputError(
                    f"{found.mask}: the mask is {mask.shape[1]}x{mask.shape[0]}, but {found.path} is "
                    f"{image.width}x{image.height}; the sizes must be equal"
                )
            if not mask.any():
                return Skipped(path=found.path, reason=f"its mask {found.mask} is empty")
    except ImageError as error:
        which = f"its mask {error.path}: " if error.path == found.mask else ""
        return Skipped(path=found.path, reason=f"{which}{error.reason}")
    return SourceImage(
        path=found.path, mask=found.mask, category=found.category, product=found.product,
        height=image.height, width=image.width, channels=image.channels, depth=image.depth,
    )  # fmt: skip


def _reasons(skipped: Iterable[Skipped]) -> str:
    reasons = [f"{each.path}: {each.reason}" for each in skipped]
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more or "none were found"
