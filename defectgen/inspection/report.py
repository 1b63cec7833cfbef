"""The inspection report on disk: a record per image, written at once, with pictures, and finally a table and a page."""

import csv
import hashlib
import heapq
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from defectgen import files
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.components import Components
from defectgen.imaging.images import DecodedImage, encode_jpeg, encode_png
from defectgen.inspection import page
from defectgen.inspection.contours import contours
from defectgen.inspection.inspector import Criteria, Finding, Unreadable, reason_of
from defectgen.inspection.record import Record
from defectgen.text import printable, recorded

_RECORDS = "report.jsonl"
_TABLE = "report.csv"
_FIGURES = "labels.json"
_PAGE = "report.html"
_COLUMNS = ("image", "defective", "score", "threshold", "defects", "area", "error")
_RED = (230, 40, 40)
_LONGEST = 120  # bytes of an image's name in that of its mask; some encrypted drives take 143, with the suffixes
_JPEG_SIDE = 65_500  # pixels, the limit of the format
_OVERLAY_PIXELS = 2**26  # an overlay is only to be looked at
_NOTED = ("border", "reference", "scorer", "floor")  # settings in each record, beside the threshold
_FOLDERS = ("masks", "overlays", "thumbnails")


@dataclass(frozen=True)
class Settings:
    """How images are judged, which is the same for all images of a report."""

    reference: str
    threshold: float
    border: int
    scorer: str = "ssim"
    floor: float = 0.0


def settings_of(reference: str, criteria: Criteria) -> Settings:
    """As a report keeps them."""
    threshold, floor = round(criteria.threshold, 5), round(criteria.floor, 5)
    return Settings(recorded(reference), threshold, criteria.border, criteria.scorer.name, floor)


class _Known(NamedTuple):
    """What is kept in memory of a record."""

    defective: bool
    error: bool
    stamp: str | None
    category: str | None
    files: tuple[str, ...]
    kept: bool


class InspectionReport:
    """A report folder. Opening it only reads; `begin` makes it ready for `add`.

    An image is done once `report.jsonl` has its record, which is written after the files that it names. The last record
    of an image counts. `defective` and `errors` count the images whose record says so, of earlier runs, too; `kept`
    counts those whose record is of an earlier run.

    Raises:
        UsageError: the folder is not empty and neither `resume` nor `overwrite` is given.
        BadInputError: the folder holds no inspection report, or (with `resume`) a damaged one, or one that names files
            outside it.
    """

    def __init__(self, out: Path, *, resume: bool, overwrite: bool) -> None:
        self.out = out
        self.defective = self.errors = self.kept = 0
        self._settings: Settings | None = None
        self._earlier = set[tuple[Any, ...]]()
        self._replaced: list[Path] = []
        self._known: dict[str, _Known] = {}
        self._owners: dict[str, str] = {}  # the image of each stem
        self._near: list[float] = []  # a heap of the highest scores of flawless images with thumbnails
        with files.writable(out):
            entries = list(out.iterdir()) if out.exists() else []
        if entries and not resume and not overwrite:
            raise UsageError(
                f"{out}: not empty; continue with --resume, replace it with --overwrite, or choose another --out"
            )
        if not entries or files.vacant(out):
            return
        for name in (_RECORDS, _TABLE, _PAGE, _FIGURES, *_FOLDERS):
            self._path(name)  # none may be a link, through which a run would write elsewhere
        if not self._path(_RECORDS).is_file():
            raise BadInputError(f"{out}: not an inspection report (it has no {_RECORDS}); choose another --out")
        for _, record in self._read(strict=not overwrite):
            if overwrite:
                self._replaced += map(self._path, record.files.values())
            else:
                self._keep(record, earlier=True)
        if overwrite:
            self._replaced += [self._path(name) for name in (_TABLE, _PAGE, _FIGURES, _RECORDS)]

    def __len__(self) -> int:
        """The number of images with a record."""
        return len(self._known)

    def check(self, settings: Settings) -> None:
        """Use these settings for all images.

        Raises:
            UsageError: an image of an earlier run was judged by others.
        """
        self._settings = settings
        for earlier in self._earlier:
            for (name, now), before in zip(asdict(self._settings).items(), earlier, strict=True):
                if before is not None and before != now:
                    raise UsageError(
                        f"{self.out}: its images were judged with {name} {before}, not {now}; continue with the same "
                        "settings, replace the report with --overwrite, or choose another --out"
                    )

    def begin(self) -> None:
        """Delete what is replaced, and what a killed run left behind, and create `report.jsonl`."""
        with files.writable(self.out):
            for path in self._replaced:
                path.unlink(missing_ok=True)
            self._replaced = []
            files.sweep(self.out)
            self.out.mkdir(parents=True, exist_ok=True)
            records = self._path(_RECORDS)
            records.touch()
            data = records.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:  # a record that a killed run did not finish
                files.write(records, whole)

    def stamp_of(self, path: Path, category: str | None = None) -> str | None:
        """The stamp of the file that was judged.

        None if the image has no record, or one with an error, or with another category than the one that is given.
        """
        known = self._known.get(_image(path))
        if known is None or known.error or category not in (None, known.category):
            return None
        return known.stamp

    def rows(self) -> list[Record]:
        """The record of each image, in the order in which they first came."""
        return list({record.image: record for _, record in self._read(strict=True)}.values())

    def add(self, finding: Finding | Unreadable, stamp: str = "", category: str | None = None) -> dict[str, Any]:
        """Write the record, mask, overlay and thumbnails of an image, in place of earlier ones; returns the record."""
        row: dict[str, Any] = {"image": _image(finding.path)} | ({} if category is None else {"category": category})
        if isinstance(finding, Unreadable):
            row["error"] = printable(finding.reason)
        else:
            settings = self._settings
            row |= {
                "defective": finding.defective,
                "score": round(finding.score, 5),
                "threshold": round(finding.threshold, 5),
                **({name: getattr(settings, name) for name in _NOTED} if settings else {}),
                "boxes": [], "areas": [], "mask": None, "overlay": None, "thumbnail": None, "stamp": stamp,
                "contours": [],
            }  # fmt: skip
            if finding.defective:
                try:
                    self._draw(finding, row)
                except (MemoryError, ValueError, cv2.error) as error:
                    row["error"] = printable(f"judged, but its defects cannot be drawn: {reason_of(error)}")
            if finding.thumbnails and (finding.defective or self._is_near(finding.score)):
                row["thumbnail"] = self._write(f"thumbnails/{self._stem(finding.path)}.jpg", finding.thumbnails)
        record = Record.model_construct(**row)
        before = self._known.get(row["image"])
        records = self._path(_RECORDS)
        with files.writable(records):
            with records.open("a", encoding="utf-8") as file:
                file.write(_line(row))
            for name in before.files if before else ():
                if name not in record.files.values():
                    self._path(name).unlink(missing_ok=True)
        self._keep(record)
        return row

    def write_table(self) -> Path:
        """Write `report.csv` with the record of each image, and drop replaced records; returns its path."""
        found = list(self._read(strict=True))
        last = {record.image: (start, record) for start, record in found}
        if len(found) != len(last):
            self._keep_lines(start for start, _ in last.values())
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
        table.writeheader()
        for _, record in last.values():
            values = {"image": _cell(record.image), "error": _cell(record.error or "")}
            table.writerow(
                {**record.model_dump(), **values, "defects": len(record.boxes), "area": sum(record.areas)},
            )
        files.write(self._path(_TABLE), text.getvalue())
        return self._path(_TABLE)

    def write_figures(self, figures: Mapping[str, Any]) -> None:
        """Write `labels.json`: how well the verdicts agree with labels."""
        self._write(_FIGURES, (json.dumps(figures, ensure_ascii=False, indent=2) + "\n").encode())

    def write_page(self) -> Path:
        """Write `report.html`, which shows all images and their thumbnails; returns its path."""
        page.write(self._path(_PAGE), self.rows(), self._path)
        return self._path(_PAGE)

    def _keep_lines(self, starts: Iterable[int]) -> None:
        """Keep of `report.jsonl` the lines that start at these bytes, in this order."""
        records = self._path(_RECORDS)
        with files.replacing(records) as temporary, records.open("rb") as source, temporary.open("wb") as file:
            for start in starts:
                source.seek(start)
                file.write(source.readline())

    def _read(self, *, strict: bool) -> Iterator[tuple[int, Record]]:
        """The records in the order of the file, with the byte at which each starts.

        An incomplete last line is left out, damaged ones unless `strict`.

        Raises:
            BadInputError: a damaged line, or one that names a file that is none of this report's.
        """
        path = self._path(_RECORDS)
        start, number = 0, 0
        try:
            with path.open("rb") as file:
                while (line := file.readline()).endswith(b"\n"):
                    number += 1
                    if record := self._parse(line, f"{path}, line {number}", strict=strict):
                        yield start, record
                    start += len(line)
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from error

    def _parse(self, line: bytes, where: str, *, strict: bool) -> Record | None:
        """The record in a line; None if it is empty, or damaged and not `strict`."""
        line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            return None
        try:
            record = Record.model_validate_json(line)
        except ValidationError as error:
            if not strict:
                return None
            first = error.errors(include_url=False, include_input=False)[0]
            reason = " ".join([*map(str, first["loc"]), first["msg"]])
            raise BadInputError(
                f"{where}: damaged ({reason}); delete the line, so that its image is inspected "
                "again with --resume, or replace the report with --overwrite"
            ) from error
        for folder, name in record.files.items():
            self._check_owned(name, folder)
        return record

    def _check_owned(self, name: str, folder: str) -> None:
        """Raise BadInputError unless `name` is that of a file in this folder of the report."""
        path = self._path(name)
        if PurePosixPath(name).parts[:-1] != (folder,) or path.is_dir():
            raise BadInputError(f"{self.out}: a record names {name!r}, which is no file of the report; correct it")

    def _path(self, name: str) -> Path:
        """The path of a file of the report, which is checked by `files.inside`."""
        return files.inside(self.out, name)

    def _keep(self, record: Record, *, earlier: bool = False) -> None:
        before = self._known.get(record.image)
        names = tuple(record.files.values())
        now = _Known(bool(record.defective), record.error is not None, record.stamp, record.category, names, earlier)
        for each, sign in ((before, -1), (now, 1)):
            if each is not None:
                self.defective += sign * each.defective
                self.errors += sign * each.error
                self.kept += sign * each.kept
        self._known[record.image] = now
        if record.defective is not None:
            self._earlier.add(tuple(getattr(record, each.name) for each in fields(Settings)))
        if record.thumbnail and not record.defective:
            push = heapq.heappush if len(self._near) < page.NEAR else heapq.heappushpop
            push(self._near, record.score or 0.0)
        for name in names:
            self._owners[_key(PurePosixPath(name).stem)] = record.image

    def _draw(self, finding: Finding, row: dict[str, Any]) -> None:
        """Write the mask and the overlay; completes the record."""
        components = Components(finding.mask)
        row["boxes"] = components.boxes[1:].tolist()
        row["areas"] = components.areas[1:].tolist()
        row["contours"] = contours(finding.mask, components)
        stem = self._stem(finding.path)
        row["mask"] = self._write(f"masks/{stem}.png", encode_png(finding.mask.view(np.uint8) * 255))
        row["overlay"] = self._write(f"overlays/{stem}.jpg", encode_jpeg(overlay(finding.photograph, finding.mask)))

    def _write(self, name: str, data: bytes) -> str:
        files.write(self._path(name), data)
        return name

    def _is_near(self, score: float) -> bool:
        """Whether the score of a flawless image is among the highest so far, whose thumbnails the page shows."""
        return len(self._near) < page.NEAR or score > self._near[0]

    def _stem(self, path: Path) -> str:
        """The name of an image's files, without suffix: the image's own, if it is short and not yet another image's."""
        image = _image(path)
        name = printable(recorded(path.name)).replace("\\", "%")
        digest = hashlib.sha256(image.encode()).hexdigest()
        start = name.encode()[: _LONGEST - 11].decode(errors="ignore")
        candidates = [name] if len(name.encode()) <= _LONGEST else []
        candidates += [f"{start}-{digest[:length]}" for length in range(10, len(digest))]
        stem = next(each for each in candidates if self._owners.get(_key(each), image) == image)
        self._owners[_key(stem)] = image
        return stem


def overlay(photograph: DecodedImage, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image with the outlines of its defects, [H, W, 3], thick enough to stay visible when it is scaled down.

    Scaled down if it has more than 2^26 pixels, or a side that JPEG cannot hold.
    """
    height, width = mask.shape
    scale = min(1.0, _JPEG_SIDE / max(height, width), (_OVERLAY_PIXELS / mask.size) ** 0.5)
    if scale < 1:
        size = max(1, int(width * scale)), max(1, int(height * scale))
        pixels: Any = cv2.resize(photograph.pixels, size, interpolation=cv2.INTER_AREA)
        photograph = DecodedImage(pixels)
        mask = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA) > 0
    shown = photograph.as_rgb()
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(shown, outlines, -1, _RED, max(1, round(max(mask.shape) / 600))), np.uint8)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _image(path: Path) -> str:
    return recorded(path.as_posix())


def _key(stem: str) -> str:
    """Equal for names that some drives take for the same."""
    return unicodedata.normalize("NFC", stem).casefold()


def _cell(text: str) -> str:
    """Text for the table, of one line; a path that spreadsheets would take for a formula gets `./` in front."""
    return printable("./" + text if text.startswith(("=", "+", "-", "@")) else text)
