"""Datasets on disk: samples in, images, masks, a manifest and a contact sheet out. Independent of how samples are made.

Writing can stop at any moment and resume later: every file is either complete or absent. The manifest has the row of a
sample before its files, so that it names every file that is there; the sample counts once they are. Files derived from
the manifest (annotations, the sheet) are written at the end. Rejected samples, which `dataset.json` lists, stay until
then: first the annotations leave them out, then their files are deleted, then their rows.
"""

import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import coco, gallery, manifest, record, sheet, yolo
from defectgen.dataset.manifest import Provenance, Row
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import Pixels, encode_jpeg, encode_png
from defectgen.version import __version__

_SHEET = "sheet.jpg"
_HELD = 2**28  # bytes of samples that wait for the disk, or a single one
_PLACED = 200  # samples whose places the sheet shows
_LONGEST_NAME = 255  # bytes
_EXTRA_IMAGES = ("restored", "normal")  # that some samples have


class Layout(str, Enum):
    """The file layout of a dataset."""

    PLAIN = "plain"
    MVTEC = "mvtec"
    COCO = "coco"
    YOLO = "yolo"


_DERIVED = {Layout.COCO.value: (coco.ANNOTATIONS,), Layout.YOLO.value: (yolo.DATA,)}  # and the sheet


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


@dataclass(frozen=True)
class Summary:
    """The result of `Dataset.write`."""

    written: int
    kept: int
    sheet: Path


def open_folder(out: Path, *, layout: Layout, command: str, resume: bool, overwrite: bool) -> "Dataset":
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
        dataset = Dataset(out, layout, command)
        if not new and overwrite:
            dataset.replace()
        elif not new:
            dataset.resume()
        files.sweep(out)
        return dataset


class Dataset:
    """A dataset folder. `done` holds the indices of the complete samples."""

    def __init__(self, out: Path, layout: Layout, command: str) -> None:
        self.out = out
        self.done: frozenset[int] = frozenset()
        self.warnings: tuple[str, ...] = ()
        """What stays of a damaged dataset that is replaced."""
        self._layout = layout
        self._command = command
        self._manifest = out / manifest.NAME
        self._files: dict[int, tuple[str, ...]] = {}
        self._normals: tuple[str, ...] = ()
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
        for row in self._rows():
            self._note(row)
            named.update(row.named)
        if before.layout != self._layout.value and self._files:
            raise UsageError(
                f"{self.out}: has layout {before.layout}, not {self._layout.value}; use --format {before.layout} or "
                "another --out"
            )
        _check_unchanged(named)
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
            names += [*row.files, *([yolo.label(row.image)] if before.layout == Layout.YOLO.value else [])]
        if before.layout is None and not names:
            raise BadInputError(f"{self.out}: not a defectgen dataset; choose another --out") from next(
                iter(damaged), None
            )
        for name in _DERIVED.get(self._layout.value, ()):
            if before.layout not in (None, self._layout.value) and os.path.lexists(self.out / name):
                raise _in_the_way(self.out / name)
        # The record goes last: until then the folder is a dataset, also if this is interrupted.
        pages = [gallery.NAME] if gallery.is_page(self.out / gallery.NAME) else []
        names += [*before.normals, *_DERIVED.get(str(before.layout), ()), *pages, _SHEET, manifest.NAME, record.NAME]
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
        normals: Iterable[tuple[str, Pixels]] = (),
        metadata: Mapping[str, Any] | None = None,
        workers: int = 2,
        on_sample: Callable[[Sample], None] = lambda _: None,
    ) -> Summary:
        """Write all samples, then the derived files. Worker threads encode the images.

        However the iteration ends, every sample that it yielded is recorded and the dataset is consistent.

        Args:
            samples: in any order; read lazily, a few ahead of the disk.
            normals: normal images with their products, for the layout that includes them (mvtec).
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
            self._derive(normals, metadata or {})
            self._drop(self._rejected.keys() & self._files.keys())
            self._write_record(metadata)
        return Summary(written, len(self.done), self.out / _SHEET)

    def _check_same_run(self, sample: Sample) -> None:
        for key, value in sample.provenance.run.items():
            if self._run is not None and self._run[key] != value:
                raise UsageError(
                    f"{self.out}: cannot resume: {key} was {self._run[key]!s:.200} and is now {value!s:.200}; "
                    "repeat the original command, or choose another --out"
                )

    def _images(self, sample: Sample) -> dict[str, tuple[str, Pixels]]:
        """The image files of a sample, by their keys in its row: their names and pixels.

        Raises:
            UsageError: a file of someone else has such a name.
            BadInputError: a link is on the way.
        """
        image, mask = self._paths(sample)
        images = {"image": (image, sample.image), "mask": (mask, sample.mask.astype(np.uint8) * 255)}
        for key in _EXTRA_IMAGES:
            pixels: Pixels | None = getattr(sample, key)
            if pixels is not None:
                images[key] = f"{key}/{sample.index:06}.png", pixels
        for name, pixels in images.values():
            self._check_free(name, pixels)
        return images

    def _check_free(self, name: str, pixels: Pixels) -> None:
        """Check that a file of the dataset would replace no other one. The same contents are not another one."""
        path = files.inside(self.out, name)
        if path.exists() and not (path.is_file() and path.read_bytes() == encode_png(pixels)):
            raise _in_the_way(path)

    def _write_images(self, images: Mapping[str, tuple[str, Pixels]]) -> None:
        for name, pixels in images.values():
            files.write(self.out / name, encode_png(pixels))

    def _row(self, sample: Sample, images: Mapping[str, tuple[str, Pixels]]) -> Row:
        return Row(
            index=sample.index,
            **{key: name for key, (name, _) in images.items()},
            category=sample.category,
            product=sample.product,
            boxes=boxes(sample.mask),
            area=int(np.count_nonzero(sample.mask)),
            **sample.provenance.model_dump(exclude_unset=True),
        )

    def _paths(self, sample: Sample) -> tuple[str, str]:
        """The names of the image and the mask of a sample."""
        name = f"{sample.index:06}"
        category = folder_name(sample.category)
        match self._layout:
            case Layout.PLAIN:
                return f"images/{category}/{name}.png", f"masks/{category}/{name}.png"
            case Layout.MVTEC:
                # anomalib accepts printable ASCII only.
                product, category = ascii_name(sample.product), ascii_name(sample.category)
                return f"{product}/test/{category}/{name}.png", f"{product}/ground_truth/{category}/{name}_mask.png"
            case Layout.COCO:
                return f"images/{name}.png", f"masks/{name}.png"
            case Layout.YOLO:
                split = yolo.split(sample.index)
                return f"images/{split}/{name}.png", f"masks/{split}/{name}.png"

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

    def _derive(self, normals: Iterable[tuple[str, Pixels]], metadata: Mapping[str, Any]) -> None:
        count = len(self._files.keys() - self._rejected.keys())
        if not count:
            for name in (*_DERIVED.get(self._layout.value, ()), _SHEET) if self._rejected else ():
                files.inside(self.out, name).unlink(missing_ok=True)
            return
        match self._layout:
            case Layout.COCO:
                coco.write(self.out, self._kept)
            case Layout.YOLO:
                yolo.write(self.out, self._kept)
            case Layout.MVTEC:
                self._write_normals(normals, metadata)
            case Layout.PLAIN:
                pass
        drawn = sheet.draw(self.out, list(_spread(self._kept, count)))
        if places := metadata.get("places"):
            rows = list(_spread(self._kept, count, _PLACED))
            drawn = np.concatenate([drawn, sheet.draw_places(self.out, rows, places, drawn.shape[1])])
        files.write(self.out / _SHEET, encode_jpeg(drawn))

    def _write_normals(self, normals: Iterable[tuple[str, Pixels]], metadata: Mapping[str, Any]) -> None:
        """Write the normals of the products that have samples; anomalib does not load others."""
        products = {row.product for row in self._kept()}
        numbers: Counter[str] = Counter()
        with ExitStack() as stack:
            names = []
            for product, pixels in normals:
                if product in products:
                    names.append(f"{ascii_name(product)}/train/good/{numbers[product]:06}.png")
                    numbers[product] += 1
                    if names[-1] not in self._normals:
                        self._check_free(names[-1], pixels)
                    path = files.inside(self.out, names[-1])
                    stack.enter_context(files.replacing(path)).write_bytes(encode_png(pixels))
            # Before the files get their names, so that the record names every file that is there.
            self._normals = tuple(sorted({*self._normals, *names}))
            self._write_record(metadata)

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
            **({"normals": list(self._normals)} if self._normals else {}),
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


def _in_the_way(path: Path) -> UsageError:
    return UsageError(f"{path}: is in the way, and not of this dataset; move it away, or choose another --out")


def _check_unchanged(named: Mapping[str, str]) -> None:
    """Check that files have the SHA-256 that is recorded: `named`, from the rows of a dataset to resume.

    Raises:
        UsageError: one has changed, or is missing.
    """
    for name, sha256 in named.items():
        try:
            changed = None if files.sha256(Path(name)) == sha256 else "has changed"
        except (OSError, ValueError):
            changed = "cannot be read"
        if changed:
            raise UsageError(
                f"{name:.255}: {changed} since samples were made from it; restore it, choose another --out, or replace "
                "the dataset with --overwrite"
            )


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
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))  # defects are small in large images
    inner = mask[top : top + height, left : left + width].astype(np.uint8)
    count, _, statistics, _ = cv2.connectedComponentsWithStats(inner, connectivity=8)
    return [[left + int(x), top + int(y), int(w), int(h)] for x, y, w, h, _ in statistics[1:count]]


def folder_name(text: str) -> str:
    """A category as a folder name that is valid on every operating system; unchanged if it already is."""
    text = manifest.recorded(text)
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", text).strip(" .")
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name)
    return _shortened(f"_{name}" if reserved or not name else name, text)


def ascii_name(text: str) -> str:
    """A name reduced to ASCII letters, digits, '-' and '_'.

    If that changes it, a hash of the original name is appended, so that different names stay different.
    """
    text = manifest.recorded(text)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    return _shortened(name if name == text else f"{name}_{_short_hash(text)}", text)


def _shortened(name: str, text: str) -> str:
    """A name of `text` that a file system takes; the names of mixtures of many categories may be too long."""
    data = name.encode()
    return name if len(data) <= _LONGEST_NAME else f"{data[:200].decode(errors='ignore')}_{_short_hash(text)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _spread(rows: Callable[[], Iterable[Row]], count: int, most: int = 24) -> Iterator[Row]:
    """At most `most` rows, evenly spaced over the manifest."""
    chosen = set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())
    return (row for position, row in enumerate(rows()) if position in chosen)
