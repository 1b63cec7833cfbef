"""Review a dataset: a folder in, one page with all samples out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from defectgen import files
from defectgen.dataset import gallery, manifest, record
from defectgen.errors import BadInputError, UsageError


@dataclass(frozen=True, kw_only=True)
class ReviewRequest:
    """The dataset to look at."""

    dataset: Path
    out: Path | None = None
    """The page to write; None means `review.html` in the dataset."""


@dataclass(frozen=True)
class ReviewResult:
    """The page, the number of samples that it shows, and why others are missing."""

    page: Path
    samples: int
    skipped: tuple[str, ...]


def review(request: ReviewRequest, on_sample: Callable[[int, int], None] = lambda *_: None) -> ReviewResult:
    """Write a page that shows all samples of a dataset, to accept and to reject them.

    >>> import defectgen
    >>> from pathlib import Path
    >>> request = defectgen.ComposeRequest(num=3, defects=Path("photos/defects"), normals=Path("photos/normals"))
    >>> job = defectgen.prepare_composition(request)
    >>> made = defectgen.write(job, defectgen.DatasetRequest(out=Path("dataset")))
    >>> defectgen.review(defectgen.ReviewRequest(dataset=Path("dataset"))).samples
    3

    Args:
        on_sample: called with the number of samples that are read, and of all.

    Raises:
        BadInputError: the folder holds no dataset, or none of its samples can be shown.
        UsageError: another process writes to the folder, or a file that is no such page is in the way.
    """
    root, page = request.dataset, request.out or request.dataset / gallery.NAME
    if not root.is_dir():
        raise BadInputError(f"{root}: no such folder")
    path = files.inside(root, manifest.NAME)
    if not path.is_file():
        raise BadInputError(f"{root}: not a defectgen dataset (it has no {manifest.NAME})")
    if page.is_dir():
        raise UsageError(f"{page}: is a folder; give a file, such as {page / gallery.NAME}")
    with files.locked(page.parent):
        if page.exists() and not gallery.is_page(page):
            raise UsageError(f"{page}: is in the way, and not a page of 'defectgen review'; choose another --out")
        files.sweep(page.parent, page.name)
        facts, text = record.read(root), path.read_bytes()
        rows = [row for row in manifest.parse(path, text[: text.rfind(b"\n") + 1]) if row.index not in facts.rejected]
        if not rows:
            raise BadInputError(f"{root}: has no samples")
        found = gallery.write(page, root, rows, facts.command, lambda number: on_sample(number, len(rows)))
    if not found.shown:
        raise BadInputError(f"{root}: none of its {len(rows)} samples can be shown; first: {found.skipped[0]}")
    return ReviewResult(page, found.shown, found.skipped)
