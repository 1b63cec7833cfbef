"""`metadata.jsonl`, with which `load_dataset("imagefolder", data_dir=...)` of Hugging Face reads a plain dataset.

Each row has `image`, `mask`, `category` and `product`, and `restored` or `normal` if the samples have those. Without
it that loader takes images, masks and the sheet for images of three classes.
https://huggingface.co/docs/datasets/image_dataset
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from defectgen import files
from defectgen.dataset.manifest import Row

NAME: Final = "metadata.jsonl"


def write(out: Path, rows: Callable[[], Iterable[Row]]) -> None:
    """Write the file for all manifest rows. Every line has the same keys, as the loader demands."""
    extra = sorted({key for row in rows() for key in ("normal", "restored") if getattr(row, key) is not None})
    with files.replacing(files.inside(out, NAME)) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows():
            line = {
                "file_name": row.image,
                "mask_file_name": row.mask,
                **{f"{key}_file_name": getattr(row, key) for key in extra},
                "category": row.category,
                "product": row.product,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
