"""Folders of photographs, in the layouts that people have, as records: which product, which category, which mask."""

import csv
from collections.abc import Callable, Iterable, Sequence
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
"""What all categories become together, where they are not told apart."""
OnBad = Literal["skip", "fail"]
OnFile = Callable[[int, int], None]

_LAYOUTS = "expected photographs, or a folder of them for each category (README.md, train)"
_LABELS = "labels.csv"
_MASK_FOLDERS = ("masks", "ground_truth")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceImage(_Record):
    """A photograph that was read once and found good. Sizes in pixels, `channels` 1 or 3, `depth` 8 or 16 bits.

    One that shows several categories is a image of each; `also` are then the others, with their masks.
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
    """A file that cannot be used, and why."""

    path: Path
    reason: str


class ProductFolders(_Record):
    """The folders of one product, as they were given."""

    product: str
    normals: Path
    defects: Path | None
    masks: Path | None = None


class Catalog(_Record):
    """All photographs of a run."""

    images: tuple[SourceImage, ...]
    skipped: tuple[Skipped, ...]

    @classmethod
    def of(cls, parts: "Iterable[Catalog]") -> "Catalog":
        """Several as one."""
        parts = list(parts)
        return cls(
            images=tuple(image for part in parts for image in part.images),
            skipped=tuple(each for part in parts for each in part.skipped),
        )

    @property
    def products(self) -> tuple[str, ...]:
        return tuple(sorted({image.product for image in self.images}))

    @property
    def categories(self) -> tuple[str, ...]:
        """Of the defects, sorted."""
        return tuple(sorted({image.category for image in self.images} - {NORMAL}))


class _Found(_Record):
    """A file not yet read."""

    path: Path
    mask: Path | None
    category: str
    product: str


def parse_product(text: str) -> ProductFolders:
    """The source of `NAME=NORMALS:DEFECTS`; a colon within a path is told from the one between by what exists."""
    name, equals, folders = text.partition("=")
    pairs = [
        (Path(folders[:i]), Path(folders[i + 1 :]))
        for i, letter in enumerate(folders)
        if letter == ":" and folders[:i] and folders[i + 1 :]
    ]
    there = [pair for pair in pairs if pair[0].is_dir() and pair[1].is_dir()]
    if not equals or not name.strip() or not pairs:
        raise UsageError(f"--product {text}: give NAME=NORMALS:DEFECTS")
    if not there:
        raise BadInputError(f"--product {text}: no two folders there, NORMALS and DEFECTS with a colon between them")
    return ProductFolders(product=name.strip(), normals=there[0][0], defects=there[0][1])


def read_catalog(
    sources: Sequence[ProductFolders],
    *,
    category: str | None = None,
    on_bad: OnBad = "skip",
    progress: OnFile | None = None,
) -> Catalog:
    """Find and read every image of `sources` once.

    >>> import defectgen
    >>> from pathlib import Path
    >>> part = defectgen.ProductFolders(product="part", normals=Path("photos/normals"), defects=Path("photos/defects"))
    >>> catalog = defectgen.read_catalog([part])
    >>> catalog.categories, len(catalog.images), len(catalog.skipped)
    (('crack', 'scratch', 'spot'), 38, 0)

    `category` names the photographs of a flat folder, or chooses one of several category folders.

    Raises:
        BadInputError: a folder that is missing or in no known layout; a mask of another size than its photograph;
            nothing left to train on; any bad file, if `on_bad` is "fail".
    """
    found: list[_Found] = []
    for source in sources:
        normals, defects = _mvtec(source)
        found += [_Found(path=path, mask=None, category=NORMAL, product=source.product) for path in _pictures(normals)]
        if defects is None:
            raise BadInputError(f"{source.normals}: defects are missing: name their folder after that of the normals")
        found += _find_defects(source, defects, category)
    catalog = _read(found, on_bad, progress)
    for product in {source.product for source in sources}:
        for what in ("normals", "defects"):
            if not any(s.product == product and (s.category == NORMAL) == (what == "normals") for s in catalog.images):
                raise BadInputError(f"{product}: no usable {what} are left: {_reasons(catalog.skipped)}")
    return catalog


def read_normals(folder: Path, *, product: str = "product", on_bad: OnBad = "skip") -> Catalog:
    """The normals alone, from a folder of photographs or that of an MVTec AD category; errors as `read_catalog`."""
    normals, _ = _mvtec(ProductFolders(product=product, normals=folder, defects=None))
    found = [_Found(path=path, mask=None, category=NORMAL, product=product) for path in _pictures(normals)]
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
    """The defects alone, from a folder as `read_catalog` takes it, or that of an MVTec AD category.

    `categories` are those to read, or all; a single one names the photographs of a flat folder. Each must have its
    mask if they are wanted `masked`.

    Raises:
        UsageError: a category that is not there.
        BadInputError: as `read_catalog`; or a defect without a mask.
    """
    if (folder / "train" / "good").is_dir() and (folder / "test").is_dir():
        folder = folder / "test"
    source = ProductFolders(product=product, normals=folder, defects=folder, masks=masks)
    found = _find_defects(source, folder, categories[0] if len(categories) == 1 else None)
    there = {each.category for each in found}
    if unknown := set(categories) - there:
        raise UsageError(f"--category {min(unknown)}: {folder} has {', '.join(sorted(there))}")
    catalog = _read([each for each in found if each.category in (categories or there)], on_bad, None)
    if not catalog.images:
        raise BadInputError(f"{folder}: no usable defects: {_reasons(catalog.skipped)}")
    if masked:
        require_masks(catalog)
    return catalog


def collapsed(category: str) -> str:
    """A category where only normal and defective are told apart."""
    return category if category == NORMAL else DEFECT


def unite(catalog: Catalog) -> Catalog:
    """A catalog whose images know what else their photographs show (`SourceImage.also`).

    The same photograph is one that has the same name and the same bytes in several category folders, or several
    categories in `labels.csv`. A name alone says nothing: many folders number their photographs alike.
    """
    by_name: dict[tuple[str, str], list[SourceImage]] = {}
    for image in catalog.images:
        if image.category != NORMAL:
            by_name.setdefault((image.product, image.path.name), []).append(image)
    also: dict[tuple[Path, str], tuple[tuple[str, Path | None], ...]] = {}
    for alike in by_name.values():
        if len({image.category for image in alike}) == 1:
            continue
        content = [files.sha256(image.path) for image in alike]
        for image, own in zip(alike, content, strict=True):
            others = [o for o, its in zip(alike, content, strict=True) if its == own and o.category != image.category]
            also[image.path, image.category] = tuple((other.category, other.mask) for other in others)
    images = (s.model_copy(update={"also": also.get((s.path, s.category), ())}) for s in catalog.images)
    return catalog.model_copy(update={"images": tuple(images)})


def require_masks(catalog: Catalog) -> None:
    """Check that every defect has a mask.

    Raises:
        BadInputError: one has none, with where to put it.
    """
    bare = [image.path for image in catalog.images if image.category != NORMAL and image.mask is None]
    if bare:
        raise BadInputError(
            f"{bare[0]}: has no mask, as {len(bare)} of the defects have none, but defects are cut out by their "
            "masks; put them where README.md (train) says, or let `defectgen inspect` make some"
        )


def _mvtec(source: ProductFolders) -> tuple[Path, Path | None]:
    """The folders of normals and defects; MVTec AD's `train/good` and `test` where its root, or `train`, is given."""
    if not source.normals.is_dir():
        raise BadInputError(f"{source.normals}: no such folder")
    for root in (source.normals, source.normals.parent):
        good = root / "train" / "good"
        if good.is_dir() and source.normals in (root, root / "train"):
            return good, source.defects or (root / "test")
    return source.normals, source.defects


def _pictures(folder: Path) -> list[Path]:
    """The photographs right inside a folder, by name; none is an error that tells what is there."""
    pictures = _listed(folder, lambda path: not path.is_dir() and is_image_file(path))
    if not pictures:
        there = ", ".join(path.name for path in islice(sorted(folder.iterdir()), 5)) or "nothing"
        raise BadInputError(f"{folder}: no photographs; found {there}; {_LAYOUTS}")
    return pictures


def _listed(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and wanted(path))
    except OSError as error:
        raise BadInputError(f"{folder}: {error.strerror}") from error


def _find_defects(source: ProductFolders, defects: Path, category: str | None) -> list[_Found]:
    if not defects.is_dir():
        raise BadInputError(f"{defects}: no such folder")
    # A link that leads nowhere is a file to be named as bad, so anything but a folder counts.
    flat = _listed(defects, lambda path: not path.is_dir() and is_image_file(path))
    if flat:
        folders = {category or defects.resolve().name: defects}
    else:
        folders = {folder.name: folder for folder in _listed(defects, Path.is_dir)}
        if (defects.parent / "train" / "good").is_dir():
            folders.pop("good", None)
        if not folders:
            _pictures(defects)
        if category is not None:
            if category not in folders:
                raise UsageError(f"--category {category}: {defects} has {', '.join(folders)}")
            folders = {category: folders[category]}
    if flat and (defects / _LABELS).is_file():
        return _labelled(source, defects, flat, category)
    if NORMAL in folders:
        raise BadInputError(f"{folders[NORMAL]}: '{NORMAL}' is what photographs without a defect are called; rename it")
    found = []
    for name, folder in folders.items():
        pictures, masks = _pictures(folder), _mask_index(source, defects, folder)
        theirs = any(mask.parent.name == folder.name for mask in masks.values())
        if theirs and not any(path.stem in masks for path in pictures):
            raise _unmatched(next(iter(masks.values())), pictures[0])
        found += [
            _Found(path=path, mask=masks.get(path.stem), category=name, product=source.product) for path in pictures
        ]
    if source.masks is not None and not any(each.mask for each in found):
        raise _unmatched(source.masks, found[0].path)
    return found


def _labelled(source: ProductFolders, defects: Path, pictures: Sequence[Path], wanted: str | None) -> list[_Found]:
    """The photographs of a flat folder, each with the categories that `labels.csv` gives it."""
    table = defects / _LABELS
    try:
        rows = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{table}: cannot be read as CSV in UTF-8: {error}") from error
    labels: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and row[0].strip().lower() == "file"):
            continue
        categories = [name.strip() for name in row[1].split(";")] if len(row) == 2 else []
        if not categories or "" in categories or NORMAL in categories:
            raise BadInputError(f"{table}: line {number}: write FILE,CATEGORY;CATEGORY, none of them '{NORMAL}'")
        labels[row[0].strip()] = list(dict.fromkeys(categories))
    by_name = {path.name: path for path in pictures}
    for problem, names in (
        ("is not in it", by_name.keys() - labels),
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
        for path in pictures
        for category in labels[path.name]
        if wanted in (None, category)
    ]


def _unmatched(masks: Path, picture: Path) -> BadInputError:
    """Masks that are there but belong to nothing are misnamed; training without them would go unnoticed."""
    return BadInputError(
        f"{masks}: no mask is named after its photograph; {picture.name} needs {picture.stem}.png or "
        f"{picture.stem}_mask.png, in a folder {picture.parent.name} if there are several categories"
    )


def _mask_index(source: ProductFolders, defects: Path, folder: Path) -> dict[str, Path]:
    """The masks of a category's folder, by the stem of their photograph."""
    if source.masks is not None and not source.masks.is_dir():
        raise BadInputError(f"--masks {source.masks}: no such folder")
    beside = [defects.parent / name for name in _MASK_FOLDERS]
    if folder == defects:  # a flat folder may itself be one of several categories
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
    """Decode every file; the good ones as images, the bad ones with their reasons, both in order."""
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
        photograph = read_image(found.path)
        if found.mask is not None:
            mask = read_mask(found.mask)
            if mask.shape != (photograph.height, photograph.width):
                raise BadInputError(
                    f"{found.mask}: the mask is {mask.shape[1]}x{mask.shape[0]}, but {found.path} is "
                    f"{photograph.width}x{photograph.height}; they must be equal"
                )
            if not mask.any():
                return Skipped(path=found.path, reason=f"its mask {found.mask} marks no defect")
    except ImageError as error:
        which = f"its mask {error.path}: " if error.path == found.mask else ""
        return Skipped(path=found.path, reason=f"{which}{error.reason}")
    return SourceImage(
        path=found.path, mask=found.mask, category=found.category, product=found.product,
        height=photograph.height, width=photograph.width, channels=photograph.channels, depth=photograph.depth,
    )  # fmt: skip


def _reasons(skipped: Iterable[Skipped]) -> str:
    several = [f"{each.path}: {each.reason}" for each in skipped]
    more = f"; and {len(several) - 3} more" if len(several) > 3 else ""
    return "; ".join(several[:3]) + more or "there were none"
