"""What a trained model makes, on normal photographs: a request in, samples out, one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from defectgen import masks
from defectgen.composing import ComposeDraw, Composition, Placement
from defectgen.contents import extract, resize
from defectgen.dataset import Synthesized
from defectgen.device import resolve, torch_rng
from defectgen.errors import OutOfMemoryError, UsageError
from defectgen.methods.base import GenerateBatch, Method
from defectgen.registry import Entry
from defectgen.samples import Draw, Samples, Wanted, mixture, mixture_name, visible
from defectgen.seeding import numpy_rng
from defectgen.trainer import load_method
from defectgen.windows import FloatArray, Window, cut, laid, place, put_back, scale_of

_FEATHER = 4.0  # native pixels over which a change fades out, at scale 1
_RIM = 8  # pixels of the network's window
_BATCH_SIZE = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True)
class SynthesisRequest:
    """What to make with which model. `placement` is for models that make contents; None takes its defaults.

    A category may be a mixture, as `crack:0.3,hole:0.7`, where the method can mix.
    """

    entry: Entry
    wanted: Wanted
    device: str = "auto"
    batch_size: int | None = None
    placement: Placement | None = None


class _Network:
    """A model, and how it is asked: whatever the batch, a row depends on its own keys alone."""

    def __init__(self, request: SynthesisRequest) -> None:
        self.device = resolve(request.device)
        self.method, _ = load_method(request.entry.file, self.device)
        self.batch_size = request.batch_size or _BATCH_SIZE[self.device.type]
        self.record = {
            "model": request.entry.name,
            "model_sha256": request.entry.sha256,
            "method": request.entry.method,
        }
        domains = self.method.task.domains
        self._weights = {}
        for text in request.wanted.categories:
            weights = mixture(text)
            for name in weights:
                if name not in domains[1:]:
                    raise UsageError(f"--category {name}: {request.entry.name} knows {', '.join(domains[1:])}")
            if len(weights) > 1 and self.method.learns != "contents":
                raise UsageError(f"--category {text}: {request.entry.method} cannot mix categories; dcdganc can")
            self._weights[mixture_name(weights)] = torch.tensor([weights.get(name, 0.0) for name in domains[1:]])
        self.categories = tuple(self._weights)

    def generate(
        self, categories: Sequence[str], keys: Sequence[tuple[int, ...]], x: FloatArray | None = None
    ) -> list[FloatArray]:
        """An image [C, S, S] for each category and key of a random generator, on windows x where the method needs them.

        Raises:
            OutOfMemoryError: naming the batch size to try next.
        """
        # On the CPU one at a time: it is as fast, and a sample's last bits, on which the outline of its mask may
        # hang, do not depend on how many are computed beside it.
        size = self.batch_size if self.device.type == "cuda" else 1
        images: list[FloatArray] = []
        try:
            for start in range(0, len(keys), size):
                part = slice(start, start + size)
                mix = torch.stack([self._weights[category] for category in categories[part]]).to(self.device)
                rngs = [torch_rng(*key) for key in keys[part]]
                windows = torch.empty(len(rngs), 0) if x is None else torch.from_numpy(x[part])
                layout = torch.contiguous_format if x is None else torch.channels_last
                windows = windows.to(self.device, memory_format=layout)
                request = GenerateBatch(windows, mix.argmax(dim=1) + 1, rngs, mix)
                images.extend(self.method.generate(request).x.float().cpu().numpy())
        except torch.OutOfMemoryError as error:
            smaller = max(1, self.batch_size // 2)
            raise OutOfMemoryError(
                f"{self.device} ran out of memory with --batch-size {self.batch_size}; try --batch-size {smaller}"
            ) from error
        return images


@dataclass(frozen=True)
class _WindowDraw(Draw):
    """A draw with the window of the photograph that is painted."""

    window: Window
    x: FloatArray


class Painted(Samples[_WindowDraw, FloatArray]):
    """Samples of a method that paints a window of the photograph."""

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        super().__init__(replace(request.wanted, categories=network.categories), network.batch_size)
        self._network = network
        self._method: Method = network.method

    def _draw(self, index: int, attempt: int) -> _WindowDraw:
        rng = numpy_rng(self._wanted.seed, index, attempt)
        drawn = self._draw_photograph(rng, index, attempt)
        task, size = self._method.task, self._method.config.image_size
        side = round(size / scale_of(task.scales, drawn.sample.product, drawn.category))
        window = place(rng, drawn.photograph.height, drawn.photograph.width, side)
        return _WindowDraw(**vars(drawn), window=window, x=cut(drawn.photograph, window, size, task.channels))

    def _generate(self, draws: Sequence[_WindowDraw]) -> list[FloatArray]:
        keys = [(self._wanted.seed, draw.index, draw.attempt) for draw in draws]
        return self._network.generate([draw.category for draw in draws], keys, np.stack([draw.x for draw in draws]))

    def _finish(self, draw: _WindowDraw, generated: FloatArray) -> Synthesized | None:
        photograph, window = draw.photograph, draw.window
        after = draw.x + (generated - draw.x) * _interior(generated.shape[1])
        mask = native_mask(masks.changed(draw.x, after), window.side)
        alpha = masks.feather(mask, _FEATHER * window.side / len(draw.x[0]))
        image = put_back(photograph, window, draw.x, after, alpha)
        mask = laid(mask, (window.x, window.y), (photograph.height, photograph.width))
        if not visible(photograph, image, mask):
            return None
        record = {
            **self._record(draw),
            "window": vars(window),
            **self._network.record,
            "seed": self._wanted.seed,
            "parameters": {"index": draw.index, "attempt": draw.attempt},
        }
        return Synthesized(draw.index, draw.category, draw.sample.product, image, mask, record)


class Composed(Composition[ComposeDraw, list[FloatArray]]):
    """Samples of a method that makes contents, which are laid onto the photograph."""

    def __init__(self, request: SynthesisRequest, network: _Network) -> None:
        wanted = replace(request.wanted, categories=network.categories)
        super().__init__(wanted, request.placement or Placement(), network.batch_size)
        self._network = network
        self._mixtures = {mixture_name(mixture(text)): mixture(text) for text in request.wanted.categories}

    def _draw(self, index: int, attempt: int) -> ComposeDraw:
        return self._draw_defects(index, attempt)

    def _generate(self, draws: Sequence[ComposeDraw]) -> list[list[FloatArray]]:
        keys = [
            (draw.category, (self._wanted.seed, draw.index, draw.attempt, i))
            for draw in draws
            for i in range(draw.count)
        ]
        images = iter(self._network.generate([category for category, _ in keys], [key for _, key in keys]))
        return [[next(images) for _ in range(draw.count)] for draw in draws]

    def _finish(self, draw: ComposeDraw, generated: list[FloatArray]) -> Synthesized | None:
        weights = self._mixtures[draw.category]
        scale = sum(weight * self._scale(draw.sample.product, name) for name, weight in weights.items())
        contents = [extract(image) for image in generated]
        contents = [resize(content, 1 / scale) for content in contents if content.support.any()]
        record: dict[str, Any] = dict(self._network.record)
        if len(weights) > 1:
            record["mixture"] = weights
        return self._compose(draw, contents, record)

    def _scale(self, product: str, category: str) -> float:
        """At which a category was learnt: on this product, or on the others in the mean."""
        scales = self._network.method.task.scales
        known = [of_product[category] for of_product in scales.values() if category in of_product]
        return scales.get(product, {}).get(category, float(np.mean(known)))


def synthesize(request: SynthesisRequest) -> Painted | Composed:
    """Defects from latent codes onto normals, in the way of the model's method.

    Raises:
        UsageError: a category that the model does not know, or a placement where the model decides it.
        WeightsError: a model that cannot be read. OutOfMemoryError: while iterating.
    """
    network = _Network(request)
    if network.method.learns == "contents":
        return Composed(request, network)
    if request.placement is not None:
        raise UsageError(
            f"{request.entry.name}: {request.entry.method} paints windows of photographs, it makes no contents; "
            "use synthesize with it, or compose with a dcdganc model or a folder of defects"
        )
    return Painted(request, network)


def native_mask(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """A window's mask at native resolution, [side, side], with a smooth outline."""
    if len(mask) == side:
        return mask
    return cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) > 0.5


def _interior(size: int) -> FloatArray:
    """0 over a window's rim, where networks paint frames, then rising to 1 over four pixels. [size, size]."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    ramp: FloatArray = np.clip((distance - _RIM) / 4, 0, 1).astype(np.float32)
    return np.outer(ramp, ramp)
