"""Datasets on disk: samples in, images, masks, a manifest and a contact sheet out. Independent of how samples are made.

Writing can stop at any moment and resume later: every file is either complete or absent, and a sample counts once the
manifest has its row. Files derived from the manifest (annotations, the sheet) are written at the end.
"""

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.dataset import coco, manifest, sheet, yolo
from defectgen.dataset.manifest import Provenance, Row
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import Pixels, encode_jpeg, encode_png
from defectgen.version import __version__

_RECORD = "dataset.json"
_SHEET = "sheet.jpg"
_PLACED = 200  # samples whose places the sheet shows
_EXTRA_IMAGES = ("restored", "normal")  # that some samples have


class Layout(str, Enum):
    """The file layout of a dataset."""

    PLAIN = "plain"
    MVTEC = "mvtec"
    COCO = "coco"
    YOLO = "yolo"


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

    Raises:
        UsageError: the folder is not empty and neither `resume` nor `overwrite` is given, or the layouts differ.
        BadInputError: the folder holds no dataset, or its manifest is damaged.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; choose a folder with --out")
    if out.is_dir() and any(out.iterdir()):
        if not resume and not overwrite:
            raise UsageError(
                f"{out}: not empty; continue with --resume, replace it with --overwrite, or choose another --out"
            )
        if not (out / _RECORD).is_file():
            raise BadInputError(f"{out}: not a defectgen dataset (it has no {_RECORD}); choose another --out")
        for leftover in out.rglob(".*.tmp"):
            leftover.unlink()
        dataset = Dataset(out, layout, command)
        if overwrite:
            dataset.replace()
        else:
            before = json.loads((out / _RECORD).read_text(encoding="utf-8")).get("layout")
            if before != layout.value:
                raise UsageError(
                    f"{out}: has layout {before}, not {layout.value}; use --format {before} or another --out"
                )
        return dataset
    return Dataset(out, layout, command)


class Dataset:
    """A dataset folder. `done` holds the indices of the complete samples."""

    def __init__(self, out: Path, layout: Layout, command: str) -> None:
        self.out = out
        self._layout = layout
        self._command = command
        self._manifest = out / manifest.NAME
        self._replaced = False
        self._files: dict[int, tuple[str, ...]] = {}
        self._run: dict[str, Any] | None = None
        for row in self._rows():
            self._note(row)
        self.done = frozenset(
            index for index, names in self._files.items() if all((out / name).is_file() for name in names)
        )

    def replace(self) -> None:
        """Start over. The old files are removed when `write` begins."""
        self._replaced, self.done = True, frozenset()

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
        if self._replaced:
            self._clear()
        self.out.mkdir(parents=True, exist_ok=True)
        self._write_record(metadata)
        queue: deque[tuple[Sample, Future[Row]]] = deque()
        written = 0

        def record() -> None:
            nonlocal written
            sample, future = queue.popleft()
            self._append(future.result())
            written += 1
            on_sample(sample)

        try:
            with ThreadPoolExecutor(max(1, workers), thread_name_prefix="encoding") as pool:
                try:
                    for sample in samples:
                        self._check_same_run(sample)
                        queue.append((sample, pool.submit(self._write_sample, sample)))
                        while len(queue) > 2 * workers:
                            record()
                finally:
                    while queue:
                        record()
        finally:
            self._put_in_order()
            self._derive(normals, metadata or {})
            self._write_record(metadata)
        return Summary(written, len(self.done), self.out / _SHEET)

    def _check_same_run(self, sample: Sample) -> None:
        for key, value in sample.provenance.run.items():
            if self._run is not None and self._run[key] != value:
                raise UsageError(
                    f"{self.out}: cannot resume: {key} was {self._run[key]} and is now {value}; "
                    "repeat the original command, or choose another --out"
                )

    def _write_sample(self, sample: Sample) -> Row:
        image, mask = self._paths(sample)
        files.write(self.out / image, encode_png(sample.image))
        files.write(self.out / mask, encode_png(sample.mask.astype(np.uint8) * 255))
        extra = {}
        for key in _EXTRA_IMAGES:
            pixels: Pixels | None = getattr(sample, key)
            if pixels is not None:
                extra[key] = f"{key}/{sample.index:06}.png"
                files.write(self.out / extra[key], encode_png(pixels))
        return Row(
            index=sample.index,
            image=str(image),
            mask=str(mask),
            **extra,
            category=sample.category,
            product=sample.product,
            boxes=boxes(sample.mask),
            area=int(sample.mask.sum()),
            **sample.provenance.model_dump(exclude_unset=True),
        )

    def _paths(self, sample: Sample) -> tuple[PurePosixPath, PurePosixPath]:
        name = f"{sample.index:06}"
        category = folder_name(sample.category)
        match self._layout:
            case Layout.PLAIN:
                return PurePosixPath(f"images/{category}/{name}.png"), PurePosixPath(f"masks/{category}/{name}.png")
            case Layout.MVTEC:
                # anomalib accepts printable ASCII only.
                product, category = ascii_name(sample.product), ascii_name(sample.category)
                return (
                    PurePosixPath(f"{product}/test/{category}/{name}.png"),
                    PurePosixPath(f"{product}/ground_truth/{category}/{name}_mask.png"),
                )
            case Layout.COCO:
                return PurePosixPath(f"images/{name}.png"), PurePosixPath(f"masks/{name}.png")
            case Layout.YOLO:
                split = yolo.split(sample.index)
                return PurePosixPath(f"images/{split}/{name}.png"), PurePosixPath(f"masks/{split}/{name}.png")

    def _append(self, row: Row) -> None:
        with files.disk_errors(self._manifest), self._manifest.open("a", encoding="utf-8") as file:
            file.write(row.line())
        self._note(row)

    def _note(self, row: Row) -> None:
        self._files[row.index] = row.files
        self._run = self._run or row.run

    def _rows(self) -> Iterator[Row]:
        """The rows. An incomplete last line is removed from the file."""
        if not self._manifest.is_file():
            return
        text = self._manifest.read_bytes()
        complete = text[: text.rfind(b"\n") + 1]
        if complete != text:
            files.write(self._manifest, complete)
        yield from manifest.parse(self._manifest, complete)

    def _put_in_order(self) -> None:
        """Sort the manifest by index and remove duplicates, which a resumed run that filled gaps leaves."""
        indices = [row.index for row in self._rows()]
        if indices == sorted(set(indices)):
            return
        rows = {row.index: row for row in self._rows()}
        files.write(self._manifest, "".join(rows[index].line() for index in sorted(rows)))

    def _derive(self, normals: Iterable[tuple[str, Pixels]], metadata: Mapping[str, Any]) -> None:
        if not self._files:
            return
        match self._layout:
            case Layout.COCO:
                coco.write(self.out, self._rows)
            case Layout.YOLO:
                yolo.write(self.out, self._rows)
            case Layout.MVTEC:
                products = {row.product for row in self._rows()}
                numbers: Counter[str] = Counter()
                for product, pixels in normals:
                    if product in products:  # anomalib does not load a product without defects
                        path = self.out / ascii_name(product) / "train" / "good" / f"{numbers[product]:06}.png"
                        files.write(path, encode_png(pixels))
                        numbers[product] += 1
            case Layout.PLAIN:
                pass
        count, drawn = len(self._files), sheet.draw(self.out, list(_spread(self._rows, len(self._files))))
        if places := metadata.get("places"):
            rows = list(_spread(self._rows, count, _PLACED))
            drawn = np.concatenate([drawn, sheet.draw_places(self.out, rows, places, drawn.shape[1])])
        files.write(self.out / _SHEET, encode_jpeg(drawn))

    def _write_record(self, metadata: Mapping[str, Any] | None) -> None:
        counts, refused = Counter[str](), Counter[str]()
        for row in self._rows():
            counts[row.category] += 1
            refused.update(row.refused)
        record = {
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
        }
        files.write(self.out / _RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def _clear(self) -> None:
        """Remove the files of an earlier run and the folders that this empties; nothing else."""
        ours = [name for names in self._files.values() for name in names]
        ours += [manifest.NAME, _RECORD, _SHEET, coco.ANNOTATIONS, yolo.DATA]
        for path in [self.out / name for name in ours] + [
            *self.out.glob("labels/*/*.txt"),
            *self.out.glob("*/train/good/*.png"),
        ]:
            path.unlink(missing_ok=True)
        for folder in sorted((path for path in self.out.rglob("*") if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        self._files, self._run, self.done, self._replaced = {}, None, frozenset(), False


def boxes(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The bounding box, [x, y, width, height], of each 8-connected component of a mask, [H, W]."""
    count, _, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return [[int(value) for value in statistics[i, :4]] for i in range(1, count)]


def folder_name(text: str) -> str:
    """A category as a folder name that is valid on every operating system; unchanged if it already is."""
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", text).strip(" .")
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name)
    return f"_{name}" if reserved or not name else name


def ascii_name(text: str) -> str:
    """A name reduced to ASCII letters, digits, '-' and '_'.

    If that changes it, a hash of the original name is appended, so that different names stay different.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", text)
    return name if name == text else f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _spread(rows: Callable[[], Iterable[Row]], count: int, most: int = 24) -> Iterator[Row]:
    """At most `most` rows, evenly spaced over the manifest."""
    chosen = set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())
    return (row for position, row in enumerate(rows()) if position in chosen)
