"""The inspection report on disk: a record per image, written at once, masks, overlays, and finally a table."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectgen import files
from defectgen.errors import BadInputError, UsageError
from defectgen.imaging.images import DecodedImage, encode_jpeg, encode_png
from defectgen.inspection.inspector import Finding, Unreadable

_RECORDS = "report.jsonl"
_TABLE = "report.csv"
_COLUMNS = ("image", "defective", "score", "threshold", "defects", "area", "error")
_RED = (230, 40, 40)


class InspectionReport:
    """A report folder. `done` holds the paths, as given, of the images that have a record.

    An image is done once `report.jsonl` has its record, which is written after the files that it names.

    Raises:
        UsageError: the folder is not empty and neither `resume` nor `overwrite` is given.
        BadInputError: the folder holds no inspection report.
    """

    def __init__(self, out: Path, *, resume: bool, overwrite: bool) -> None:
        self.out = out
        self._records = out / _RECORDS
        self.done: set[str] = set()
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        if not resume and not overwrite:
            raise UsageError(
                f"{out}: not empty; continue with --resume, replace it with --overwrite, or choose another --out"
            )
        if not self._records.is_file():
            raise BadInputError(f"{out}: not an inspection report (it has no {_RECORDS}); choose another --out")
        if overwrite:
            for row in self.rows():
                for key in ("mask", "overlay"):
                    if row.get(key):
                        (out / row[key]).unlink(missing_ok=True)
            for name in (_RECORDS, _TABLE):
                (out / name).unlink(missing_ok=True)
        self.done = {row["image"] for row in self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """The records. An incomplete last line is removed from the file."""
        if not self._records.is_file():
            return []
        text = self._records.read_bytes()
        complete = text[: text.rfind(b"\n") + 1]
        if complete != text:
            files.write(self._records, complete)
        return [json.loads(line) for line in complete.splitlines()]

    def add(self, finding: Finding | Unreadable) -> dict[str, Any]:
        """Write the record, mask and overlay of an image; returns the record."""
        row: dict[str, Any]
        if isinstance(finding, Unreadable):
            row = {"image": str(finding.path), "error": finding.reason}
        else:
            row = {
                "image": str(finding.path),
                "defective": finding.defective,
                "score": round(finding.score, 5),
                "threshold": round(finding.threshold, 5),
                **self._defects(finding),
            }
        self.out.mkdir(parents=True, exist_ok=True)
        with files.disk_errors(self._records), self._records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.done.add(row["image"])
        return row

    def _defects(self, finding: Finding) -> dict[str, Any]:
        if not finding.defective:
            return {"boxes": [], "areas": [], "mask": None, "overlay": None}
        mask = finding.mask.astype(np.uint8)
        _, _, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        name = finding.path.name
        files.write(self.out / f"masks/{name}.png", encode_png(mask * 255))
        files.write(self.out / f"overlays/{name}.jpg", encode_jpeg(overlay(finding.photograph, finding.mask)))
        return {
            "boxes": statistics[1:, :4].tolist(),
            "areas": statistics[1:, cv2.CC_STAT_AREA].tolist(),
            "mask": f"masks/{name}.png",
            "overlay": f"overlays/{name}.jpg",
        }

    def write_table(self) -> Path:
        """Write `report.csv` with all records; returns its path."""
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
        table.writeheader()
        for row in self.rows():
            table.writerow({**row, "defects": len(row.get("boxes", [])), "area": sum(row.get("areas", []))})
        files.write(self.out / _TABLE, text.getvalue())
        return self.out / _TABLE


def overlay(photograph: DecodedImage, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image with the outlines of its defects, [H, W, 3], thick enough to stay visible when it is scaled down."""
    shown = photograph.as_rgb()
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(mask.shape) / 600))
    return np.asarray(cv2.drawContours(shown, outlines, -1, _RED, width), np.uint8)
