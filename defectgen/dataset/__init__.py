"""Datasets on disk: samples in, images, masks, a manifest and a contact sheet out. Independent of how samples are made.

Writing can stop at any moment and resume later: every file is either complete or absent. The manifest has the row of a
sample before its files, so that it names every file that is there; the sample counts once they are. Files derived from
the manifest (annotations, the sheet) are written at the end. Rejected samples, which `dataset.json` lists, stay until
then: first the annotations leave them out, then their files are deleted, then their rows.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import coco, gallery, imagefolder, manifest, record, sheet, yolo
from defectgen.dataset.coco import Segmentation
from defectgen.dataset.instances import Instances, numbered
from defectgen.dataset.manifest import Provenance, Row
from defectgen.dataset.names import ascii_name, folder_name
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import Pixels, encode_jpeg, encode_png
from defectgen.version import __version__

_SHEET = "sheet.jpg"
_HELD = 2**28  # bytes of samples that wait for the disk, or a single one
_PLACED = 200  # samples whose places the sheet shows
_EXTRA_IMAGES = ("restored", "normal")  # that some samples have


class Layout(str, Enum):
    """The file layout of a dataset."""

    PLAIN = "plain"
    MVTEC = "mvtec"
    COCO = "coco"
    YOLO = "yolo"


_DERIVED = {
    Layout.PLAIN: (imagefolder.NAME,),
    Layout.COCO: tuple(coco.ANNOTATIONS.values()),
    Layout.YOLO: (yolo.DATA,),
}  # and the sheet
_DERIVED_BEFORE = {"coco": ("annotations.json",), "yolo": (yolo.DATA,)}  # by versions that did not record it
_DIVIDED = (Layout.COCO, Layout.YOLO)
_BACKGROUNDS = {Layout.YOLO: 0.1}  # normals per sample, unless asked for


@dataclass(frozen=True)
class LayoutOptions:
    """How a layout is written, as far as it has a choice."""

    val: float = 0.2
    """The share for validation; for mvtec, of the normals for testing."""
    normals_share: float | None = None
    """Normals per sample that are written as images without defects. None: 0.1 for yolo, 0 for coco."""
    segmentation: Segmentation = "auto"
    instances: Instances = "defects"
    product: str | None = None
    """The name of the product. None: its own."""


@dataclass(frozen=True)
class Sample:
    """A generated image with a defect, its mask and its provenance."""

    index: int
    """Its number in the run, which is also its file name."""
    category: str
    product: str
    image: Pixels
    """At the source's size and depth, as `DecodedImage.pixels`."""
    mask: NDArray[np.bool_]
    """[H, W], never empty."""
    provenance: Provenance
    restored: Pixels | None = None
    """The image with its defects removed by the model, if requested."""
    normal: Pixels | None = None
    """The version without defects, if the model generates both together."""
    validates: bool = False
    """Whether it is for validation, if the layout has such samples."""
    numbers: NDArray[np.uint16] | None = None
    """The defect at each pixel, [H, W], from 1; 0 where there is none. None: all are of one."""
    encoded: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """The PNG files of its images by their keys in a row, if another rank made it: then it has no pixels but the mask.
    """


def packed(sample: Sample) -> Sample:
    """A sample as one rank hands it to another: its images as PNG files."""
    files = {key: encode_png(pixels) for key, pixels in _pixels(sample).items()}
    return replace(sample, image=np.empty((0, 0), np.uint8), restored=None, normal=None, encoded=files)


def _pixels(sample: Sample) -> dict[str, Pixels]:
    """The images of a sample by their keys in a row."""
    extra = {key: getattr(sample, key) for key in _EXTRA_IMAGES}
    found = {"image": sample.image, "mask": sample.mask.astype(np.uint8) * 255, **extra}
    return {key: pixels for key, pixels in found.items() if pixels is not None}


@dataclass(frozen=True)
class Normal:
    """An image without defects. `validates` is whether it is for validation, or for testing."""

    product: str
    validates: bool
    read: Callable[[], Pixels] = field(repr=False)


@dataclass(frozen=True)
class Summary:
    """The result of `Dataset.write`."""

    written: int
    kept: int
    sheet: Path


def open_folder(
    out: Path, *, layout: Layout, command: str, resume: bool, overwrite: bool, options: LayoutOptions | None = None
) -> "Dataset":
    """Open the dataset folder `out`: a new one, or that of an earlier run to resume or overwrite.

    A folder without files counts as new, also if a killed run left temporary ones.

    Raises:
        UsageError: the folder is not empty and neither `resume` nor `overwrite` is given, or the layouts differ, or a
            file that a row names has changed since.
        BadInputError: the folder holds no dataset, or its manifest is damaged or names a file that is not inside.
    """
    with files.writable(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out}: is a file; choose a folder with --out")
        new = not out.exists() or files.vacant(out)
        if not new and not resume and not overwrite:
            raise UsageError(
                f"{out}: not empty; continue with --resume, replace it with --overwrite, or choose another --out"
            )
        if not new and not (out / record.NAME).is_file():
            raise BadInputError(f"{out}: not a defectgen dataset (it has no {record.NAME}); choose another --out")
        dataset = Dataset(out, layout, command, options or LayoutOptions())
        if not new and overwrite:
            dataset.replace()
        elif not new:
            dataset.resume()
        files.sweep(out)
        return dataset


class Dataset:
    """A dataset folder. `done` holds the indices of the complete samples."""

    def __init__(self, out: Path, layout: Layout, command: str, options: LayoutOptions) -> None:
        self.out = out
        self.done: frozenset[int] = frozenset()
        self.warnings: tuple[str, ...] = ()
        """What stays of a damaged dataset that is replaced, and what a loader may miss."""
        self._options = options
        self.sides: dict[str, bool] = {}
        """The photographs, by SHA-256, of one side of the split alone: whether it is that for validation."""
        self._folders: dict[str, str] = {}  # of categories, in the mvtec layout
        self._layout = layout
        self._command = command
        self._manifest = out / manifest.NAME
        self._files: dict[int, tuple[str, ...]] = {}
        self._normals: tuple[str, ...] = ()
        self._validating: frozenset[str] = frozenset()  # of these
        self._old: list[Path] = []
        self._run: dict[str, Any] | None = None
        self._rejected: dict[int, str] = {}

    @property
    def rejected(self) -> frozenset[int]:
        """The indices that are rejected, now or earlier."""
        return frozenset(self._rejected)

    def resume(self) -> None:
        """Continue: find the samples that are complete.

        Raises:
            UsageError, BadInputError: as `open_folder`.
        """
        before = record.read(self.out)
        if before.layout is None:
            raise BadInputError(f"{self.out / record.NAME}: not of a defectgen dataset; choose another --out")
        named: dict[str, str] = {}
        sides: dict[str, set[bool]] = {}
        for row in self._rows():
            for sha256 in row.used_photographs:
                sides.setdefault(sha256, set()).add(row.split == "val" or self._layout is Layout.MVTEC)
            self._note(row)
            named.update(row.named)
            if self._layout is Layout.MVTEC:
                self._folders[row.category] = PurePosixPath(row.image).parent.name
        if before.layout != self._layout.value and self._files:
            raise UsageError(
                f"{self.out}: has layout {before.layout}, not {self._layout.value}; use --format {before.layout} or "
                "another --out"
            )
        if self._files and self._val is not None and before.val != self._val:
            old = "that of an older version" if before.val is None else f"--val {before.val:g}"
            raise UsageError(
                f"{self.out}: cannot resume: the split was {old} and is now --val {self._val:g}; repeat the original "
                "command, choose another --out, or replace the dataset with --overwrite"
            )
        self._check_derived(before)
        _check_unchanged({manifest.located(self.out, name): sha256 for name, sha256 in named.items()})
        self.sides = {sha256: True in both for sha256, both in sides.items() if len(both) == 1}
        self._normals = before.normals
        self._rejected = dict(before.rejected)
        complete = (index for index in self._files if self._is_complete(index))
        self.done = frozenset(index for index in complete if index not in self._rejected)

    def reject(self, listed: Path) -> None:
        """Reject the samples that a file names, one a line, by image, mask or number. `write` removes them.

        Raises:
            BadInputError: the file cannot be read, or names something else; then nothing is rejected.
        """
        known = dict[str, int]()
        for row in self._rows():
            known |= dict.fromkeys((row.image, row.mask, f"{row.index:06}.png", f"{row.index:06}"), row.index)
        for index, image in self._rejected.items():
            known |= dict.fromkeys((image, f"{index:06}.png", f"{index:06}"), index)
        indices = {name: known.get(self._relative(name)) for name in _lines(listed)}
        if unknown := [name for name, index in indices.items() if index is None]:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise BadInputError(
                f"{listed}: {self.out} has no sample {', '.join(unknown[:5])}{more}; give one image a line, as in its "
                f"{manifest.NAME}; nothing was rejected"
            )
        found = {index for index in indices.values() if index is not None}
        if before := len(found & self._rejected.keys()):
            self.warnings += (f"{listed}: {before} of the samples in it were replaced before",)
        self._rejected |= {index: self._files[index][0] for index in found - self._rejected.keys()}
        self.done -= self._rejected.keys()

    def _relative(self, name: str) -> str:
        """A name as the manifest has it: relative to the dataset, also if it was given from the working folder."""
        path = Path(os.path.abspath(name))
        root = Path(os.path.abspath(self.out))
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else name.replace("\\", "/")

    def replace(self) -> None:
        """Start over. The old files are removed when `write` begins: only those that the dataset says are its own.

        Raises:
            BadInputError: the folder holds no dataset, or it names files that are not inside.
        """
        damaged: list[BadInputError] = []
        try:
            before = record.read(self.out)
        except BadInputError as error:
            damaged.append(error)
            before = record.Record()
        names: list[str] = []
        for row in self._rows(damaged.append):
            names += row.files
        if before.layout is None and not names:
            raise BadInputError(f"{self.out}: not a defectgen dataset; choose another --out") from next(
                iter(damaged), None
            )
        names += before.normals
        if before.layout == Layout.YOLO.value:
            names += [yolo.label(name) for name in names if name.startswith("images/")]
        if before.layout is not None:
            self._check_derived(before)
        # The record goes last: until then the folder is a dataset, also if this is interrupted.
        pages = [gallery.NAME] if gallery.is_page(self.out / gallery.NAME) else []
        names += [*_derived_by(before), *pages, _SHEET, manifest.NAME, record.NAME]
        self._old = [files.inside(self.out, name) for name in names]
        if folder := next((path for path in self._old if path.is_dir()), None):
            raise BadInputError(f"{folder}: is a folder, but the dataset names it as a file; move it away")
        if damaged:
            count = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            self.warnings = (f"{damaged[0]}{count}; files that only damaged lines name stay in {self.out}",)

    def write(
        self,
        samples: Iterable[Sample],
        *,
        normals: Sequence[Normal] = (),
        metadata: Mapping[str, Any] | None = None,
        workers: int = 2,
        on_sample: Callable[[Sample], None] = lambda _: None,
    ) -> Summary:
        """Write all samples, then the derived files. Worker threads encode the images.

        However the iteration ends, every sample that it yielded is recorded and the dataset is consistent.

        Args:
            samples: in any order; read lazily, a few ahead of the disk.
            normals: normal images, for the layouts that include some.
            metadata: JSON-serializable facts about all samples, for `dataset.json`. They are read again at the end.
            on_sample: called for each recorded sample.
        """
        self._clear()
        self._drop_incomplete()
        self._write_record(metadata)
        queue: deque[tuple[Sample, Future[None]]] = deque()
        written = 0

        def held() -> int:
            return sum(sample.image.nbytes + sample.mask.nbytes for sample, _ in queue)

        def finish() -> None:
            nonlocal written
            sample, future = queue.popleft()
            future.result()
            written += 1
            on_sample(sample)

        try:
            with ThreadPoolExecutor(max(1, workers), thread_name_prefix="encoding") as pool:
                try:
                    for sample in samples:
                        self._check_same_run(sample)
                        images = self._images(sample)
                        self._append(self._row(sample, images))
                        queue.append((sample, pool.submit(self._write_images, images)))
                        while len(queue) > 2 * workers or (len(queue) > 1 and held() > _HELD):
                            finish()
                finally:
                    while queue:
                        finish()
        finally:
            self._drop_incomplete()
            self._put_in_order()
            self._derive(normals, metadata or {}, workers)
            self._drop(self._rejected.keys() & self._files.keys())
            self._write_record(metadata)
        return Summary(written, len(self.done), self.out / _SHEET)

    @property
    def _val(self) -> float | None:
        """The share for validation, if the layout has one."""
        return self._options.val if self._layout in (*_DIVIDED, Layout.MVTEC) else None

    def _check_derived(self, before: record.Record) -> None:
        """Check that a file of someone else is not where a derived one goes."""
        for name in _DERIVED.get(self._layout, ()):
            if name not in _derived_by(before) and os.path.lexists(self.out / name):
                raise _in_the_way(self.out / name)

    def _check_same_run(self, sample: Sample) -> None:
        for key, value in sample.provenance.run.items():
            if self._run is not None and self._run[key] != value:
                raise UsageError(
                    f"{self.out}: cannot resume: {key} was {self._run[key]!s:.200} and is now {value!s:.200}; "
                    "repeat the original command, or choose another --out"
                )

    def _images(self, sample: Sample) -> dict[str, tuple[str, Pixels | bytes]]:
        """The image files of a sample, by their keys in its row: their names, and pixels or contents.

        Raises:
            UsageError: a file of someone else has such a name.
            BadInputError: a link is on the way.
        """
        image, mask = self._paths(sample)
        names = {key: f"{key}/{sample.index:06}.png" for key in _EXTRA_IMAGES} | {"image": image, "mask": mask}
        contents: Mapping[str, Pixels | bytes] = sample.encoded or _pixels(sample)
        images = {key: (names[key], each) for key, each in contents.items()}
        for name, each in images.values():
            self._check_free(name, each)
        return images

    def _check_free(self, name: str, contents: Pixels | bytes) -> None:
        """Check that a file of the dataset would replace no other one. The same contents are not another one."""
        path = files.inside(self.out, name)
        if path.exists() and not (path.is_file() and path.read_bytes() == _png(contents)):
            raise _in_the_way(path)

    def _write_images(self, images: Mapping[str, tuple[str, Pixels | bytes]]) -> None:
        for name, contents in images.values():
            files.write(self.out / name, _png(contents))

    def _row(self, sample: Sample, images: Mapping[str, tuple[str, Pixels | bytes]]) -> Row:
        found = _components(sample.mask)
        made = sample.provenance.model_dump(exclude_unset=True)
        divided = {"split": "val" if sample.validates else "train"} if self._layout in _DIVIDED else {}
        several = {} if sample.numbers is None else {"instances": found.numbers(sample.numbers)}
        return Row(
            index=sample.index,
            **{key: name for key, (name, _) in images.items()},
            category=sample.category,
            product=self._product(sample.product),
            boxes=found.boxes,
            **several,
            area=int(np.count_nonzero(sample.mask)),
            **divided,
            **manifest.absolute(made),
        )

    def _product(self, own: str) -> str:
        return own if self._options.product is None else self._options.product

    def _paths(self, sample: Sample) -> tuple[str, str]:
        """The names of the image and the mask of a sample."""
        name = f"{sample.index:06}"
        match self._layout:
            case Layout.PLAIN:
                category = folder_name(sample.category)
                return f"images/{category}/{name}.png", f"masks/{category}/{name}.png"
            case Layout.MVTEC:
                # anomalib accepts printable ASCII only.
                product, category = ascii_name(self._product(sample.product)), self._ascii_category(sample.category)
                return f"{product}/test/{category}/{name}.png", f"{product}/ground_truth/{category}/{name}_mask.png"
            case Layout.COCO:
                return f"images/{name}.png", f"masks/{name}.png"
            case Layout.YOLO:
                split = "val" if sample.validates else "train"
                return f"images/{split}/{name}.png", f"masks/{split}/{name}.png"

    def _ascii_category(self, category: str) -> str:
        category = manifest.recorded(category)
        if category not in self._folders:
            self._folders[category] = ascii_name(category, {"good", *self._folders.values()})
        return self._folders[category]

    def _append(self, row: Row) -> None:
        path = files.inside(self.out, manifest.NAME)
        with files.writable(path), path.open("a", encoding="utf-8") as file:
            file.write(row.line())
        self._note(row)

    def _note(self, row: Row) -> None:
        self._files[row.index] = row.files
        self._run = self._run or row.run

    def _kept(self) -> Iterator[Row]:
        """The rows of all samples but the rejected ones."""
        return (row for row in self._rows() if row.index not in self._rejected)

    def _rows(self, on_damaged: Callable[[BadInputError], None] | None = None) -> Iterator[Row]:
        """The rows. An incomplete last line is left out; `_drop_incomplete` removes it."""
        path = files.inside(self.out, manifest.NAME)
        if path.is_file():
            text = path.read_bytes()
            yield from manifest.parse(path, text[: text.rfind(b"\n") + 1], on_damaged)

    def _is_complete(self, index: int) -> bool:
        return all(files.inside(self.out, name).is_file() for name in self._files[index])

    def _drop_incomplete(self) -> None:
        """Drop the samples whose files are not all there."""
        self._drop({index for index in self._files if index not in self.done and not self._is_complete(index)})

    def _drop(self, indices: Set[int]) -> None:
        """Delete the files of samples, then their rows, and an incomplete line."""
        paths = []
        for index in indices:
            image, *_ = self._files[index]
            labels = [yolo.label(image)] if self._layout is Layout.YOLO else []
            paths += [files.inside(self.out, name) for name in (*self._files[index], *labels)]
        self._delete([path for path in paths if path.is_file()])
        if indices or not self._ends_complete():
            kept = (row.line() for row in self._rows() if row.index not in indices)
            files.write(self._manifest, "".join(kept))
        for index in indices:
            del self._files[index]

    def _ends_complete(self) -> bool:
        """Whether the manifest, if there is one, ends with a complete line."""
        if not self._manifest.is_file() or not self._manifest.stat().st_size:
            return True
        with self._manifest.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _put_in_order(self) -> None:
        """Sort the manifest by index and remove duplicates, which a resumed run that filled gaps leaves."""
        indices = [row.index for row in self._rows()]
        if indices == sorted(set(indices)):
            return
        rows = {row.index: row for row in self._rows()}
        files.write(self._manifest, "".join(rows[index].line() for index in sorted(rows)))

    def _derive(self, normals: Sequence[Normal], metadata: Mapping[str, Any], workers: int) -> None:
        count = len(self._files.keys() - self._rejected.keys())
        self._write_normals(self._chosen(normals), metadata, workers)
        if not count:
            names = (*_DERIVED.get(self._layout, ()), _SHEET) if self._rejected else ()
            self._delete([files.inside(self.out, name) for name in names])
            return
        match self._layout:
            case Layout.COCO:
                coco.write(
                    self.out, self._kept, self._backgrounds(), self._options.segmentation, self._options.instances
                )
            case Layout.YOLO:
                yolo.write(self.out, self._kept, self._normals, self._options.instances)
            case Layout.PLAIN:
                imagefolder.write(self.out, self._kept)
            case Layout.MVTEC:
                pass
        if self._val and self._layout in _DIVIDED and all(row.split == "train" for row in self._kept()):
            self.warnings += (f"{self.out}: too few samples for validation: all are for training; make more with -n",)
        drawn = sheet.draw(self.out, list(_spread(self._kept, count)))
        if places := metadata.get("places"):
            rows = list(_spread(self._kept, count, _PLACED))
            drawn = np.concatenate([drawn, sheet.draw_places(self.out, rows, places, drawn.shape[1])])
        files.write(self.out / _SHEET, encode_jpeg(drawn))

    def _backgrounds(self) -> dict[str, list[str]]:
        """The images of normals, by split."""
        names: dict[str, list[str]] = {"train": [], "val": []}
        for name in self._normals:
            names["val" if name in self._validating else "train"].append(name)
        return names

    def _chosen(self, normals: Sequence[Normal]) -> dict[str, Normal]:
        """The normals to write, by their names: for mvtec all of the products that have samples, since anomalib does
        not load others; for coco and yolo a share of the samples of their side, evenly spread."""
        chosen: dict[str, Normal] = {}
        if self._layout is Layout.MVTEC:
            products, numbers = {row.product for row in self._kept()}, Counter[str]()
            for normal in normals:
                product = self._product(normal.product)
                folder = f"{ascii_name(product)}/{'test' if normal.validates else 'train'}/good"
                if product in products:
                    chosen[f"{folder}/{numbers[folder]:06}.png"] = normal
                    numbers[folder] += 1
        elif self._layout in _DIVIDED:
            share = self._options.normals_share
            share = _BACKGROUNDS.get(self._layout, 0.0) if share is None else share
            counts = Counter(row.split for row in self._kept())
            for split in ("train", "val"):
                own = [(i, normal) for i, normal in enumerate(normals) if normal.validates == (split == "val")]
                wanted = min(len(own), round(share * counts[split]))
                folder = f"images/{split}" if self._layout is Layout.YOLO else "images"
                for at in np.linspace(0, len(own) - 1, wanted).round().astype(int).tolist():
                    chosen[f"{folder}/normal_{own[at][0]:06}.png"] = own[at][1]
        return chosen

    def _write_normals(self, chosen: Mapping[str, Normal], metadata: Mapping[str, Any], workers: int) -> None:
        """Write these normals, and remove those of an earlier run that are not among them."""
        old = self._normals

        def encoded(item: tuple[str, Normal]) -> bytes:
            name, normal = item
            pixels = normal.read()
            if name not in old:
                self._check_free(name, pixels)
            return encode_png(pixels)

        with ExitStack() as stack:
            with ThreadPoolExecutor(max(1, workers), thread_name_prefix="encoding") as pool:
                for name, future in [(item[0], pool.submit(encoded, item)) for item in chosen.items()]:
                    path = files.inside(self.out, name)
                    stack.enter_context(files.replacing(path)).write_bytes(future.result())
            # Before the files get their names, so that the record names every file that is there.
            self._normals = tuple(sorted({*old, *chosen}))
            self._write_record(metadata)
        for name in sorted({*old} - {*chosen}):
            for each in (name, yolo.label(name)) if self._layout is Layout.YOLO else (name,):
                files.inside(self.out, each).unlink(missing_ok=True)
        self._normals = tuple(sorted(chosen))
        self._validating = frozenset(name for name, normal in chosen.items() if normal.validates)

    def _write_record(self, metadata: Mapping[str, Any] | None) -> None:
        counts, refused = Counter[str](), Counter[str]()
        for row in self._kept():
            counts[row.category] += 1
            refused.update(row.refused)
        facts = {
            "command": self._command,
            "layout": self._layout.value,
            "versions": {
                "defectgen": __version__,
                "torch": version("torch"),
                "numpy": np.__version__,
                "opencv": cv2.__version__,
            },
            "samples": counts.total(),
            "categories": dict(sorted(counts.items())),
            **(metadata or {}),
            **({"refused": dict(refused)} if refused else {}),
            **({"rejected": dict(sorted(self._rejected.items()))} if self._rejected else {}),
            **({} if self._val is None else {"val": self._val}),
            **({"normals": list(self._normals)} if self._normals else {}),
            "derived": list(_DERIVED.get(self._layout, ())),
        }
        files.write(self.out / record.NAME, manifest.as_json(facts, indent=2) + "\n")

    def _clear(self) -> None:
        """Remove the files of an earlier run that `replace` found, and the folders that this empties; nothing else."""
        self._delete(self._old)
        self._old = []

    def _delete(self, paths: Sequence[Path]) -> None:
        """Delete files of the dataset, and the folders that this empties."""
        with files.writable(self.out):
            for path in paths:
                path.unlink(missing_ok=True)
        folders = {folder for path in paths for folder in path.relative_to(self.out).parents[:-1]}
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):  # not empty
                (self.out / folder).rmdir()


def _png(contents: Pixels | bytes) -> bytes:
    return contents if isinstance(contents, bytes) else encode_png(contents)


def _in_the_way(path: Path) -> UsageError:
    return UsageError(f"{path}: is in the way, and not of this dataset; move it away, or choose another --out")


def _derived_by(before: record.Record) -> tuple[str, ...]:
    """The derived files of an earlier run."""
    return _DERIVED_BEFORE.get(str(before.layout), ()) if before.derived is None else before.derived


def _check_unchanged(named: Mapping[Path, str]) -> None:
    """Check that files have the SHA-256 that is recorded: `named`, from the rows of a dataset to resume.

    Raises:
        UsageError: one has changed, or is missing.
    """
    for path, sha256 in named.items():
        try:
            changed = None if files.sha256(path) == sha256 else "has changed"
        except (OSError, ValueError):
            changed = "cannot be read"
        if changed:
            raise UsageError(
                f"{path!s:.255}: {changed} since samples were made from it; restore it, choose another --out, or "
                "replace the dataset with --overwrite"
            )


@dataclass(frozen=True)
class _Components:
    """The 8-connected components of a mask: their labels in a part of it, and their boxes, [x, y, width, height]."""

    labels: NDArray[np.int32]
    part: tuple[slice, slice]
    boxes: list[list[int]]

    def numbers(self, defects: NDArray[np.uint16]) -> list[int]:
        return numbered(self.labels, len(self.boxes), defects[self.part])


def _components(mask: NDArray[np.bool_]) -> _Components:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))  # defects are small in large images
    part = slice(top, top + height), slice(left, left + width)
    count, labels, found, _ = cv2.connectedComponentsWithStats(mask[part].astype(np.uint8), connectivity=8)
    boxes = [[left + int(x), top + int(y), int(w), int(h)] for x, y, w, h, _ in found[1:count]]
    return _Components(np.asarray(labels, np.int32), part, boxes)


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without empty ones.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise BadInputError(f"{path}: {reason}; give a text file with one image a line") from error
    return [line for each in text.splitlines() if (line := each.strip())]


def boxes(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The bounding box, [x, y, width, height], of each 8-connected component of a mask, [H, W]."""
    return _components(mask).boxes


def _spread(rows: Callable[[], Iterable[Row]], count: int, most: int = 24) -> Iterator[Row]:
    """At most `most` rows, evenly spaced over the manifest."""
    chosen = set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())
    return (row for position, row in enumerate(rows()) if position in chosen)
