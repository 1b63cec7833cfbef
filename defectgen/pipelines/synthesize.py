"""Make samples with a model, move defects between products, compose cut-outs: requests in, streams of samples out.

A stream is read lazily, a sample at a time; `write` reads it into a dataset folder.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from defectgen import dataset
from defectgen.dataset import Layout, Sample
from defectgen.errors import BadInputError, UsageError, UserError, WeightsError
from defectgen.folders import Catalog, OnBad, Skipped, read_defects, read_normals
from defectgen.methods import having, info
from defectgen.models import registry
from defectgen.models.registry import Entry
from defectgen.synthesis import pasted
from defectgen.synthesis.pasted import Placement, Region
from defectgen.synthesis.stream import AnyStream, SampleSpec, mixture, require

Folder = tuple[str | None, Path]
"""A folder of images with the product that they show; None for the folder's own name, or the model's only product."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What all samples depend on. `categories` empty means all that there are."""

    num: int
    categories: tuple[str, ...] = ()
    model: str | None = None
    weights: Path | None = None
    """The list of models; None takes the nearest `weights.toml`."""
    on_bad: OnBad = "skip"
    seed: int = 0
    device: str = "auto"
    batch_size: int | None = None
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class SynthesizeRequest(_Request):
    """Samples of a trained model. A category may be a mixture, `crack:0.3,hole:0.7`, or a union, `crack+rust`."""

    normals: tuple[Folder, ...] = ()
    """Empty for those that the model was trained on, or for whole images, where the method makes such."""
    regions: tuple[tuple[str | None, Region], ...] = ()
    """Where defects may lie: each with its category, or one for the categories of the sample."""
    restored: bool = False
    gate: Path | None = None
    """A folder of real defects with masks that samples must resemble and not copy."""


@dataclass(frozen=True, kw_only=True)
class ComposeRequest(_Request):
    """Defects, cut out of the images in `defects` by their masks or made by `model`, blended onto `normals`."""

    normals: Path
    defects: Path | None = None
    masks: Path | None = None
    """Where the masks lie, if not beside the defects."""
    placement: Placement = field(default_factory=Placement)


@dataclass(frozen=True, kw_only=True)
class TransferRequest(_Request):
    """Defects of the images in `source`, or of `model`, on the normals in `to`."""

    to: tuple[Folder, ...]
    source: tuple[Folder, ...] = ()
    masks: Path | None = None
    style: Literal["own", "sampled"] | Path = "own"
    placement: Placement | None = None
    """None for `Placement(colour="match")`, where the method lets defects be placed."""
    region: Region | None = None


@dataclass(frozen=True)
class SynthesisJob:
    """A request whose inputs were read and found good."""

    maker: str
    """The model, or where the defects come from."""
    categories: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    plan: dict[str, Any]
    """What would be done, for people: counts, the model, how defects are placed."""
    workers: int
    none_made: Callable[[int], UserError]
    """Why a number of samples all failed, as far as one can tell."""
    _open: Callable[[frozenset[int]], AnyStream] = field(repr=False)

    def samples(self, skip: Iterable[int] = ()) -> AnyStream:
        """The stream of samples without those whose indices are in `skip`.

        Raises:
            UsageError: what the method cannot do. WeightsError: a model that cannot be read.
        """
        return self._open(frozenset(skip))


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """Where and how to write. `command` is kept in `dataset.json`."""

    out: Path
    layout: Layout = Layout.PLAIN
    command: str = "python"
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class DatasetResult:
    """What was written. `failed` are the samples that showed nothing after ten attempts each."""

    out: Path
    written: int
    kept: int
    redrawn: int
    failed: int
    refused: dict[str, int]
    """Attempts that the gate refused, by reason."""
    sheet: Path


# --- synthesize ------------------------------------------------------------------------------------------------


def prepare_synthesis(request: SynthesizeRequest) -> SynthesisJob:
    """Find the model and read the normals.

    Raises:
        WeightsError: no model fits, or its file is missing or altered. BadInputError: normals that cannot be used.
    """
    named = [category for category, _ in request.regions]
    wanted = _categories_of_regions(request.categories, named)
    entry = find_model(request.model, wanted, request.weights)
    categories = wanted or entry.categories
    whole = info(entry.method).makes == "image" and not request.normals
    folders = () if whole else _normals_of(entry, request.normals)
    catalog = Catalog.of(read_normals(folder, product=product, on_bad=request.on_bad) for product, folder in folders)
    real = None if request.gate is None else read_defects(request.gate, on_bad=request.on_bad)
    from defectgen.device import resolve  # here and below: what needs no network does not load PyTorch

    plan = {
        "model": entry.name,
        "method": entry.method,
        "file": str(entry.file),
        "categories": categories,
        "device": str(resolve(request.device)),
        **_plan(catalog, request.num),
    }

    def open_stream(skip: frozenset[int]) -> AnyStream:
        from defectgen.synthesis import generated
        from defectgen.synthesis.gate import Gate

        gate = None if request.gate is None or real is None else Gate(request.gate, real)
        return generated.synthesize(
            generated.SynthesisRequest(
                entry=entry,
                wanted=SampleSpec(categories, request.num, catalog, request.seed, request.workers, skip, gate),
                device=request.device,
                batch_size=request.batch_size,
                regions=request.regions,
                restored=request.restored,
                whole=whole,
            )
        )

    def none_made(count: int) -> WeightsError:
        passes = " or passes --gate" if request.gate else ""
        return WeightsError(
            f"{entry.file}: none of {count} samples shows a change{passes}; train the model {entry.name} longer"
        )

    skipped = (*catalog.skipped, *(real.skipped if real else ()))
    return SynthesisJob(entry.name, categories, skipped, plan, request.workers, none_made, open_stream)


def synthesize(request: SynthesizeRequest) -> AnyStream:
    """Samples of a trained model on normal images: an iterable with a length, in the order of their indices.

    Each `Sample` has `image`, uint8 or uint16 [H, W] or [H, W, C] at the source's size and depth, `mask`, bool
    [H, W], `category`, `product`, and `provenance`, which says how it came about. Sample k is the same whatever the
    number of samples.

    >>> import defectgen
    >>> request = defectgen.SynthesizeRequest(num=2, model="dt-gan-samples", categories=("spot",), device="cpu")
    >>> for sample in defectgen.synthesize(request):
    ...     print(sample.category, sample.image.dtype, sample.image.shape[:2] == sample.mask.shape, sample.mask.any())
    spot uint8 True True
    spot uint8 True True

    Raises:
        UsageError: what the method cannot do. WeightsError: a model that is missing or damaged.
        BadInputError: normals that cannot be used. OutOfMemoryError: while iterating.
    """
    return prepare_synthesis(request).samples()


# --- compose ---------------------------------------------------------------------------------------------------


def prepare_composition(request: ComposeRequest) -> SynthesisJob:
    """Read the normals and the defects, or find the model.

    Raises:
        UsageError: neither defects nor a model, or both. BadInputError, WeightsError: as `prepare_synthesis`.
    """
    if (request.defects is None) == (request.model is None):
        raise UsageError("give a folder of defects, or a model that makes some")
    catalog = read_normals(request.normals, product=request.normals.resolve().name, on_bad=request.on_bad)
    if request.defects is not None:
        maker = str(request.defects)
        cut_outs = read_defects(
            request.defects, masks=request.masks, categories=request.categories, on_bad=request.on_bad
        )
        categories, skipped = request.categories or cut_outs.categories, (*catalog.skipped, *cut_outs.skipped)
    else:
        entry = find_model(request.model, request.categories, request.weights)
        maker, categories, skipped = entry.name, request.categories or entry.categories, catalog.skipped
    plan = {
        "contents": maker, "categories": categories, **_plan(catalog, request.num), **request.placement.summary(),
    }  # fmt: skip

    def open_stream(skip: frozenset[int]) -> AnyStream:
        wanted = SampleSpec(categories, request.num, catalog, request.seed, request.workers, skip)
        if request.defects is not None:
            return pasted.compose(pasted.ComposeRequest(wanted, cut_outs, maker, request.placement))

        from defectgen.synthesis import generated

        return generated.synthesize(
            generated.SynthesisRequest(entry, wanted, request.device, request.batch_size, request.placement)
        )

    def none_made(count: int) -> BadInputError:
        return BadInputError(
            f"{request.normals}: none of {count} samples shows a defect; are the defects of {maker} larger than the "
            "region, or as faint as the images' own grain?"
        )

    return SynthesisJob(maker, categories, skipped, plan, request.workers, none_made, open_stream)


def compose(request: ComposeRequest) -> AnyStream:
    """Defects blended onto normal images: an iterable of samples, as `synthesize` gives.

    Real defects need no training and load no network.

    >>> import defectgen
    >>> from pathlib import Path
    >>> request = defectgen.ComposeRequest(num=3, defects=Path("photos/defects"), normals=Path("photos/normals"))
    >>> [sample.category for sample in defectgen.compose(request)]
    ['crack', 'scratch', 'spot']

    Raises:
        UsageError: a category that is not there. BadInputError: images, masks or a region that cannot be used.
        WeightsError: a model that is missing or damaged.
    """
    return prepare_composition(request).samples()


# --- transfer --------------------------------------------------------------------------------------------------


def prepare_transfer(request: TransferRequest) -> SynthesisJob:
    """Find the model, if one is named, and read all images.

    Raises:
        UsageError: neither a source nor a model; or what the method cannot do.
        BadInputError, WeightsError: as `prepare_synthesis`.
    """
    if request.model is None and not request.source:
        raise UsageError("give --from DEFECTS to cut out, or --model NAME of a model that knows some")
    if request.model is None and request.style != "own":
        raise UsageError(
            f"--style {request.style}: real defects keep their own; give a {having('style')} model with --model"
        )
    entry = find_model(request.model, request.categories, request.weights) if request.model else None
    if entry is not None and request.source:
        require("reference", info(entry.method), f"{entry.name}: {entry.method}")

    def read(folders: Sequence[Folder], masks: Path | None = None) -> Catalog:
        return Catalog.of(
            read_defects(
                folder, product=_product(product, folder, entry), masks=masks, masked=entry is None,
                categories=request.categories, on_bad=request.on_bad,
            )
            for product, folder in folders
        )  # fmt: skip

    normals = Catalog.of(
        read_normals(folder, product=_product(product, folder, entry), on_bad=request.on_bad)
        for product, folder in request.to
    )
    references = read(request.source, request.masks) if request.source else None
    style = read([(None, request.style)]) if isinstance(request.style, Path) else request.style
    read_all = [catalog for catalog in (normals, references, style) if isinstance(catalog, Catalog)]
    categories = request.categories or _common(entry, references)
    given = [str(folder) if product is None else f"{product}={folder}" for product, folder in request.source]
    maker = entry.name if entry else ", ".join(given)
    pastes = entry is None or info(entry.method).pastes
    placement = request.placement or Placement(region=request.region, colour="match")
    plan = {
        "model": entry and entry.name,
        "from": given or None,
        "categories": categories,
        **_plan(normals, request.num),
        **(placement.summary() if pastes else {}),
    }

    def open_stream(skip: frozenset[int]) -> AnyStream:
        wanted = SampleSpec(categories, request.num, normals, request.seed, request.workers, skip)
        if entry is None:
            assert references is not None
            return pasted.compose(pasted.ComposeRequest(wanted, references, maker, placement))
        if not pastes and request.placement is not None:
            raise UsageError(
                f"{entry.name}: {entry.method} paints defects where they lie; --scale, --rotation, --per-image, "
                "--crop and --colour are for real defects, and for models that make patches"
            )

        from defectgen.synthesis import generated

        regions = ((None, placement.region),) if not pastes and placement.region is not None else ()
        return generated.synthesize(
            generated.SynthesisRequest(
                entry, wanted, request.device, request.batch_size,
                placement=placement if pastes else None, regions=regions, references=references, style=style,
                guides=f"from {', '.join(given)}, style {request.style}" if given else "",
            )
        )  # fmt: skip

    def none_made(count: int) -> BadInputError:
        to = ", ".join(str(folder) if product is None else f"{product}={folder}" for product, folder in request.to)
        return BadInputError(
            f"{to}: none of {count} samples shows a defect of {maker}; try other normals"
            + (", or train the model longer" if entry else ", or --colour keep")
        )

    return SynthesisJob(maker, categories, Catalog.of(read_all).skipped, plan, request.workers, none_made, open_stream)


def transfer(request: TransferRequest) -> AnyStream:
    """Defects of one product on images of another: an iterable of samples, as `synthesize` gives.

    >>> import defectgen
    >>> from pathlib import Path
    >>> source, to = (None, Path("photos/defects")), (None, Path("other/normals"))
    >>> request = defectgen.TransferRequest(num=2, source=(source,), to=(to,), categories=("spot",))
    >>> [sample.provenance.method for sample in defectgen.transfer(request)]
    ['cut-outs', 'cut-outs']

    Raises:
        UsageError: what the method cannot do, or a product that the model does not know.
        BadInputError, WeightsError, OutOfMemoryError: as `synthesize`.
    """
    return prepare_transfer(request).samples()


# --- Writing ---------------------------------------------------------------------------------------------------


def write(
    job: SynthesisJob,
    request: DatasetRequest,
    on_start: Callable[[AnyStream], None] = lambda _: None,
    on_sample: Callable[[Sample], None] = lambda _: None,
) -> DatasetResult:
    """Make the samples of a job and write them as a dataset.

    >>> import defectgen
    >>> from pathlib import Path
    >>> request = defectgen.ComposeRequest(num=3, defects=Path("photos/defects"), normals=Path("photos/normals"))
    >>> job = defectgen.prepare_composition(request)
    >>> result = defectgen.write(job, defectgen.DatasetRequest(out=Path("dataset"), layout=defectgen.Layout.COCO))
    >>> result.written, (result.out / "annotations.json").is_file()
    (3, True)

    Args:
        on_start: called with the stream before its first sample is made; its counters rise as it is read.
        on_sample: called after each sample that was written.

    Raises:
        UsageError: the folder is taken, or holds samples of another command. UserError: every sample failed.
    """
    target = dataset.open_folder(
        request.out, layout=request.layout, command=request.command, resume=request.resume, overwrite=request.overwrite
    )
    samples = job.samples(target.done)
    on_start(samples)
    summary = target.write(
        samples, normals=samples.normals(), metadata=samples.metadata, workers=job.workers, on_sample=on_sample
    )
    failed = len(samples.failed)
    if failed and failed == len(samples):
        raise job.none_made(failed)
    return DatasetResult(
        request.out, summary.written, summary.kept, samples.redrawn, failed, dict(samples.refused), summary.sheet
    )


# --- What they share -------------------------------------------------------------------------------------------


def find_model(model: str | None, categories: Sequence[str], weights: Path | None) -> Entry:
    """The model of that name, or the newest that knows the categories (or mixtures, unions); its file is whole.

    Raises:
        WeightsError: there is none, its file is missing or altered, or its method is not installed.
    """
    known = {name for text in categories for name in mixture(text)}
    entry = registry.find(name=model, categories=known, files=registry.find_registry(weights))
    registry.verify(entry)
    try:
        info(entry.method)
    except UsageError as error:
        raise WeightsError(f"{entry.file}: {str(error).removeprefix('--method ')}") from error
    return entry


def _plan(normals: Catalog, num: int) -> dict[str, Any]:
    pixels = [sample.height * sample.width * sample.channels * sample.depth // 8 for sample in normals.images]
    return {
        "num": num,
        "normals": len(pixels),
        "skipped": len(normals.skipped),
        **({"disk_bytes_at_most": round(num * sum(pixels) / len(pixels))} if pixels else {}),
    }


def _categories_of_regions(categories: Sequence[str], named: Sequence[str | None]) -> tuple[str, ...]:
    """The categories to make: those given, or all those that regions name, at once."""
    names = list(dict.fromkeys(name for name in named if name is not None))
    if not names:
        if len(named) > 1:
            raise UsageError("--region: with more than one, each needs its category, as --region crack=0,0,64,64")
        return tuple(dict.fromkeys(categories))
    if categories or None in named:
        raise UsageError("--region CATEGORY=WHERE: name the category of each region, and leave out --category")
    return ("+".join(names),)


def _normals_of(entry: Entry, given: Sequence[Folder]) -> Sequence[tuple[str, Path]]:
    """The normals to work on, with their products: those that the model was trained on, or those given instead."""
    if not given:
        for folder in entry.trained_on.values():
            if not folder.is_dir():
                raise BadInputError(
                    f"{folder}: {entry.name} was trained on these normals, which are gone; use --normals DIR"
                )
        return list(entry.trained_on.items())
    folders = []
    for product, path in given:
        if product is None and len(entry.products) == 1 == len(given):
            product = entry.products[0]
        if product not in entry.products:
            text = str(path) if product is None else f"{product}={path}"
            raise UsageError(f"--normals {text}: give PRODUCT=DIR, as {entry.name} knows {', '.join(entry.products)}")
        folders.append((product, path))
    return folders


def _product(product: str | None, folder: Path, entry: Entry | None) -> str:
    """What a folder of images shows: the product named, or what the folder is called after."""
    if product is None:
        return folder.resolve().name
    if entry is not None and product not in entry.products:
        raise UsageError(
            f"{product}={folder}: {entry.name} knows {', '.join(entry.products)}; leave out the name of a product "
            "that it has not seen"
        )
    return product


def _common(entry: Entry | None, references: Catalog | None) -> tuple[str, ...]:
    """The categories to make, where none were named: those of the references and of the model, or both's."""
    shown = references.categories if references is not None else ()
    if entry is None:
        return shown
    both = tuple(name for name in entry.categories if references is None or name in shown)
    if not both:
        raise UsageError(f"{entry.name} knows {', '.join(entry.categories)}, but --from shows {', '.join(shown)}")
    return both
