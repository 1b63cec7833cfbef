"""Reads folders of images in the common layouts into a catalog: the product, category and mask of each image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from defectgen import annotations, files
from defectgen.errors import BadInputError, UsageError
from defectgen.finding import NORMAL, Found, Part, ProductFolders, find_defects, find_normals
from defectgen.imaging.images import DecodedImage, ImageError, read_image
from defectgen.imaging.mask_files import Mask, fitted, read_masks
from defectgen.imaging.oddities import covered, is_bilevel, is_transparent, is_turned_alone, orientation
from defectgen.imaging.windows import BoolArray
from defectgen.marking import MASKS, Marking
from defectgen.mask_matching import READERS, about, some, stem

__all__ = [
    "DEFECT", "NORMAL", "Catalog", "OnBad", "OnFile", "ProductFolders", "Skipped", "SourceImage", "collapsed",
    "limits_of", "parse_product", "read_catalog", "read_defects", "read_normals", "require_masks", "unite",
]  # fmt: skip

DEFECT: Final = "defect"
"""The single category of a method that does not distinguish categories of defects."""
OnBad = Literal["skip", "fail"]
OnFile = Callable[[int, int], None]
_ASTRAY = "to no image"  # in the line about masks that are named after nothing


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceImage(_Record):
    """A readable image and its category. Sizes are in pixels, `channels` is 1 or 3, `depth` is 8 or 16 bits.

    `mask` is a file, a folder of several masks of the image, or drawn from annotations (`imaging.mask_files`).
    An image that shows several categories has one record for each. `also` lists the other categories and their masks.
    """

    path: Path
    mask: Mask | None
    category: str
    product: str
    height: int
    width: int
    channels: int
    depth: int
    also: tuple[tuple[str, Mask | None], ...] = ()


class Skipped(_Record):
    """A file that cannot be used, and the reason."""

    path: Path
    reason: str


class Catalog(_Record):
    """All images of a run, the files that were skipped, and what is odd about the others, each in one line."""

    images: tuple[SourceImage, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, parts: "Iterable[Catalog]") -> "Catalog":
        """Merge several catalogs into one."""
        parts = list(parts)
        return cls(
            images=tuple(image for part in parts for image in part.images),
            skipped=tuple(each for part in parts for each in part.skipped),
            warnings=tuple(dict.fromkeys(line for part in parts for line in part.warnings)),
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


@dataclass(frozen=True)
class _Reading:
    """The result of reading a file, and what is odd about it."""

    image: SourceImage | Skipped
    covered: float = 0.0
    """The fraction of the image that its mask marks, if it may be inverted; else 0."""
    turned: bool = False
    """Whether EXIF turns the image, but not its mask, and their sizes do not tell if that is right."""
    transparent: bool = False
    bilevel: bool = False
    """Whether it has no mask and looks like one itself."""


def parse_product(text: str) -> ProductFolders:
    """Parse `NAME=NORMALS:DEFECTS`. All may contain `=` and `:`: the split is the one where both folders exist.

    Raises:
        UsageError: the text has another form.
        BadInputError: no split gives two existing folders.
    """
    splits = [
        (text[:i], Path(text[i + 1 : j]), Path(text[j + 1 :]))
        for i, equals in enumerate(text)
        for j, colon in enumerate(text)
        if equals == "=" and colon == ":" and text[:i].strip() and i + 1 < j < len(text) - 1
    ]
    if not splits:
        raise UsageError(f"--product {text}: give NAME=NORMALS:DEFECTS")
    for name, normals, defects in splits:
        if normals.is_dir() and defects.is_dir():
            return ProductFolders(product=name.strip(), normals=normals, defects=defects)
    raise BadInputError(f"--product {text}: no such folders; give two, separated by a colon: NORMALS:DEFECTS")


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
    (('crack', 'scratch', 'spot', 'stain'), 48, 0)

    Args:
        category: the category of the images in a flat folder, or the one to use of several category folders.
        on_bad: whether to skip unreadable files, or fail on them.
        progress: called after each file with the number read and the total.

    Raises:
        UsageError: `category` does not exist.
        BadInputError: a folder is missing or has no known layout; a mask and its image differ in size;
            no usable image is left; a file is unreadable and `on_bad` is "fail".
    """
    parts: list[Part] = []
    for source in sources:
        normals, defects = _mvtec(source)
        if defects is None and source.marking.annotations is not None:  # which tell the ones from the others
            defects = normals
        source = source.model_copy(update={"normals": normals})
        parts.append(find_normals(normals, source.product, source.marking, defects))
        if defects is None:
            raise BadInputError(f"{source.normals}: no folder of defects is given; give it after this one")
        parts.append(find_defects(source, defects, () if category is None else (category,)))
    catalog = _read(parts, on_bad, progress)
    for product in {source.product for source in sources}:
        for what in ("normals", "defects"):
            if not any(s.product == product and (s.category == NORMAL) == (what == "normals") for s in catalog.images):
                raise BadInputError(f"{product}: no usable {what}: {_reasons(catalog.skipped)}")
    return catalog


def read_normals(
    folder: Path,
    *,
    product: str = "product",
    marking: Marking = MASKS,
    defects: Path | None = None,
    on_bad: OnBad = "skip",
) -> Catalog:
    """Read normal images only, from a flat folder or an MVTec AD category folder.

    Args:
        marking: its annotations tell which images have defects, and are left out.
        defects: the folder of defects, which may be the same.

    Raises:
        BadInputError: as `read_catalog`.
    """
    normals, _ = _mvtec(ProductFolders(product=product, normals=folder, defects=None))
    catalog = _read([find_normals(normals, product, marking, defects)], on_bad, None)
    if not catalog.images:
        raise BadInputError(f"{folder}: no usable normals: {_reasons(catalog.skipped)}")
    return catalog


def read_defects(
    folder: Path,
    *,
    product: str = "defects",
    masks: Path | None = None,
    marking: Marking = MASKS,
    normals: Path | None = None,
    masked: bool = True,
    categories: Sequence[str] = (),
    on_bad: OnBad = "skip",
) -> Catalog:
    """Read defect images only, from a folder of defects as in `read_catalog` or an MVTec AD category folder.

    Args:
        masks: the folder of masks, if it is not beside the defects.
        marking: annotations instead of masks, or how masks are read.
        normals: a folder of normals, which may be in that of the defects, or be the same.
        masked: whether every image must have a mask.
        categories: the categories to read; empty for all. A single one names the images of a flat folder.

    Raises:
        UsageError: a category does not exist.
        BadInputError: as `read_catalog`, or a mask is missing.
    """
    if (folder / "train" / "good").is_dir() and (folder / "test").is_dir():
        folder = folder / "test"
    source = ProductFolders(product=product, normals=normals or folder, defects=folder, masks=masks, marking=marking)
    catalog = _read([find_defects(source, folder, categories)], on_bad, None)
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
    also: dict[tuple[Path, str], tuple[tuple[str, Mask | None], ...]] = {}
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
        beside = "; ".join(annotations.beside(dict.fromkeys(path.parent for path in unmasked)))
        astray = next((line for line in catalog.warnings if _ASTRAY in line), None)
        raise BadInputError(
            f"{astray}; masks are called as their images, in a folder that is called as their category"
            if astray
            else f"{len(unmasked)} of {len(defects)} defect images have no mask (first: {unmasked[0]}); "
            + (
                beside
                or "masks are needed to cut out defects: add them as described in README.md (Folders), or create them "
                "with `defectgen inspect`"
            )
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


# --- Reading ----------------------------------------------------------------------------------------------------


def _read(parts: Sequence[Part], on_bad: OnBad, progress: OnFile | None) -> Catalog:
    """Decode every file. The catalog lists readable images and skipped files, both in the order of `parts`."""
    readings: list[_Reading] = []
    lines: list[str] = []
    total = sum(len(part.found) for part in parts)
    with ThreadPoolExecutor(READERS, thread_name_prefix="reading") as pool:
        results = pool.map(_read_one, [each for part in parts for each in part.found])
        for part in parts:
            mine = []
            for _ in part.found:
                mine.append(next(results))
                if progress is not None:
                    progress(len(readings) + len(mine), total)
            mine = _without_strays(mine)
            readings += mine
            lines += [*part.warnings, *_oddities(part, mine)]
    skipped = tuple(dict.fromkeys(each.image for each in readings if isinstance(each.image, Skipped)))
    if skipped and on_bad == "fail":
        raise BadInputError(f"{len(skipped)} of {total} files cannot be used: {_reasons(skipped)}")
    images = tuple(each.image for each in readings if isinstance(each.image, SourceImage))
    return Catalog(images=images, skipped=skipped, warnings=tuple(dict.fromkeys(lines)))


def _read_one(found: Found) -> _Reading:
    marked, turned = 0.0, False
    try:
        image = read_image(found.path)
        given = found.mask
        if given is not None:
            fitting = fitted(given, image)
            mask = read_masks(fitting)
            if mask.shape != (image.height, image.width):
                raise _unequal(found.path, fitting, image, mask)
            if not mask.any():
                return _Reading(Skipped(path=found.path, reason=f"its mask {given} is empty"))
            marked, turned = covered(mask), is_turned_alone(found.path, given, image)
            found = replace(found, mask=fitting)
    except ImageError as error:
        which = f"its mask {error.path}: " if error.path != found.path else ""
        return _Reading(Skipped(path=found.path, reason=f"{which}{error.reason}"))
    read = SourceImage(
        path=found.path, mask=found.mask, category=found.category, product=found.product,
        height=image.height, width=image.width, channels=image.channels, depth=image.depth,
    )  # fmt: skip
    return _Reading(read, marked, turned, is_transparent(image), found.mask is None and is_bilevel(image))


def _unequal(path: Path, mask_path: Mask, image: DecodedImage, mask: BoolArray) -> BadInputError:
    turned = mask.shape == (image.width, image.height) and orientation(path) >= 5
    advice = (
        "the image is turned by its EXIF orientation, the mask is not: turn the mask, too"
        if turned
        else "the sizes must be equal"
    )
    sizes = f"the mask is {mask.shape[1]}x{mask.shape[0]}, but {path} is {image.width}x{image.height}"
    return BadInputError(f"{mask_path}: {sizes}; {advice}")


def _without_strays(readings: Sequence[_Reading]) -> list[_Reading]:
    """Skip the images of a folder that look like masks, unless all of them do."""
    if all(each.bilevel for each in readings if isinstance(each.image, SourceImage)):
        return list(readings)
    reason = "black and white alone, as a mask is, but named as no image's mask; rename or remove it"
    return [_Reading(Skipped(path=each.image.path, reason=reason)) if each.bilevel else each for each in readings]


def _oddities(part: Part, readings: Sequence[_Reading]) -> list[str]:
    """Warnings about images and masks that are used as they are."""
    used = [(each, each.image) for each in readings if isinstance(each.image, SourceImage)]
    lines = _missing_masks(part, [image for _, image in used])
    inverted = {
        image.mask if isinstance(image.mask, Path) else image.path: each.covered for each, image in used if each.covered
    }
    if inverted:
        share = f"{min(inverted.values()):.0%}"
        lines.append(
            about(
                list(inverted),
                f"mask marks {share} of its image, or all its borders",
                f"masks mark {share} or more of their images, or all their borders",
                "inverted? Only the defect must be marked",
            )
        )
    turned = list(dict.fromkeys(image.path for each, image in used if each.turned))
    if turned:
        lines.append(
            about(turned, "image is turned by its EXIF orientation, its mask is not",
                  "images are turned by their EXIF orientation, their masks are not", "check that the masks fit")
        )  # fmt: skip
    transparent = list(dict.fromkeys(image.path for each, image in used if each.transparent))
    if transparent:
        lines.append(
            about(transparent, "image is transparent in parts", "images are transparent in parts",
                  "transparency is ignored, and what lies under it counts as surface")
        )  # fmt: skip
    return lines


def _missing_masks(part: Part, images: Sequence[SourceImage]) -> list[str]:
    """A line about images without a mask where others have one, and about masks without an image."""
    missing = list(dict.fromkeys(image.path for image in images if image.mask is None))
    if not part.unused and (not missing or all(image.mask is None for image in images)):
        return []
    total, names = len({image.path for image in images}), some(str(path.relative_to(part.folder)) for path in missing)
    clauses = []
    if missing:
        clauses.append(
            f"{len(missing)} of {total} defect images {'has' if len(missing) == 1 else 'have'} no mask ({names})"
        )
    if part.unused:
        one = len(part.unused) == 1
        paths = some(f"{path}/" if path.is_dir() else str(path) for path in part.unused)
        clauses.append(f"{len(part.unused)} {'mask belongs' if one else 'masks belong'} {_ASTRAY} ({paths})")
    stems = {stem(path).casefold() for path in missing}
    if any(stem(path).casefold() in stems for path in part.unused):
        clauses.append("upper and lower case count in names")
    return [f"{part.folder}: {'; '.join(clauses)}"]


def _reasons(skipped: Sequence[Skipped]) -> str:
    """The first image of each of at most three reasons, which may begin with the path of a mask."""
    first: dict[str, str] = {}
    for each in skipped:
        first.setdefault(each.reason.rsplit(": ", 1)[-1], f"{each.path}: {each.reason}")
    shown = list(first.values())[:3]
    more = f"; and {len(skipped) - len(shown)} more" if len(skipped) > len(shown) else ""
    return "; ".join(shown) + more or "none were found"
