"""What a network trained on ImageNet sees in an image: EfficientNet-Lite0, frozen, and networks that users name.

The weights ship in this folder, `lite0.safetensors`: float16, batch normalization folded into the convolutions, made
by `examples/make_features.py`. Nothing is downloaded. Tan and Le, "EfficientNet: Rethinking Model Scaling for
Convolutional Neural Networks", ICML 2019; the "lite" variants have neither squeeze-and-excitation nor swish.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load as from_safetensors
from torch import Tensor, nn

from defectgen.errors import WeightsError
from defectgen.nn.layers import depthwise

NAME: Final = "lite0"
CHANNELS: Final = (24, 40, 112, 320)
"""Of the four maps, at strides 4, 8, 16 and 32."""
SHA256: Final = "f04d80ac5467494cfcb29b7b61f6192e9807e9b3f1d46e2a14876b5008feeea3"
_FILE = Path(__file__).with_name("lite0.safetensors")
Features = NDArray[np.float64]
# Kernel, stride, expansion, channels and blocks of each stage (table 1 of the paper; Lite0 is not scaled).
STAGES: Final = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip


class _Conv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same" does: with stride 2 one more at the end than at the start."""

    def forward(self, x: Tensor) -> Tensor:
        weight, stride, padding = self.weight, self.stride[0], self.kernel_size[0] // 2
        if stride == 2:  # zeros before the kernel cost less than a copy of the map with zeros after it
            weight = F.pad(weight, [part for side in (x.shape[3], x.shape[2]) for part in (1 - side % 2, 0)])
        if self.groups > 1 and (stride == 2 or weight.requires_grad):
            return depthwise(x, weight, self.bias, stride=stride, padding=padding)
        return F.conv2d(x, weight, self.bias, stride, padding, groups=self.groups)


class _Block(nn.Module):
    """An inverted residual: expand, filter each channel, project; added to its input where the shapes agree."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = c_in * expansion
        self.expand = _Conv(c_in, width, 1) if expansion > 1 else None
        self.filter = _Conv(width, width, kernel, stride, groups=width)
        self.project = _Conv(width, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        h = self.project(F.relu6(self.filter(h), inplace=True))
        return h + x if self.residual else h


class Lite0(nn.Module):
    """EfficientNet-Lite0 without its head: features at strides 4, 8, 16 and 32.

    It never leaves evaluation mode. Its parameters have no gradients until `requires_grad_(True)` asks for them, to
    fine-tune it; gradients always flow to the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 3, 2)
        blocks, c_in = [], 32
        for kernel, stride, expansion, c_out, count in STAGES:
            for i in range(count):
                blocks.append(_Block(c_in, c_out, kernel, stride if i == 0 else 1, expansion))
                c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Lite0":
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, 1 or 3, H, W] in [-1, 1], sides of 32 or more -> four maps, [B, CHANNELS[i], H / 2^(i+2), ...].

        Raises:
            ValueError: an image smaller than 32 pixels.
        """
        if min(x.shape[2:]) < 32:
            raise ValueError(f"{x.shape[3]}x{x.shape[2]} pixels: the features need 32x32 or more")
        h = F.relu6(self.stem(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x), inplace=True)
        maps: list[Tensor] = []
        for block, following in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            h = block(h)
            if following is None or following.filter.stride[0] == 2:
                maps.append(h)
        return maps[1:]


def lite0(device: torch.device | str = "cpu") -> Lite0:
    """The network with the weights that ship, in float32, channels last.

    Raises:
        WeightsError: the file is missing or altered.
    """
    try:
        data = _FILE.read_bytes()
    except OSError as error:
        raise WeightsError(f"{_FILE}: {error.strerror}; install defectgen again") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise WeightsError(f"{_FILE}: altered since defectgen was built; install defectgen again")
    network = Lite0()
    network.load_state_dict({name: tensor.float() for name, tensor in from_safetensors(data).items()})
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def embed(network: Lite0, images: NDArray[np.float32], batch_size: int = 16) -> Features:
    """What the network sees in each image as a whole: the means of its maps at strides 8, 16 and 32, [N, 472].

    Args:
        images: [N, C, S, S] in [-1, 1].
    """
    device = next(network.parameters()).device
    found = []
    for start in range(0, len(images), batch_size):
        x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
        maps = network(x.to(device, memory_format=torch.channels_last))[1:]
        found.append(torch.cat([each.mean(dim=(2, 3)) for each in maps], dim=1).cpu().numpy())
    return np.concatenate(found).astype(np.float64)


class Extractor(Protocol):
    """Windows [N, C, 64, 64] in [-1, 1] to features [N, D]."""

    def __call__(self, windows: NDArray[np.float32]) -> Features: ...


_CALLS: dict[str, dict[str, Any]] = {
    "inception": {"return_features": True},
    "lpips": {"resize_images": False, "return_lpips": True},
}
"""The networks that can be given, and how each is called: the TorchScript files of the StyleGAN authors' metrics."""


def extractor(kind: str, file: Path, device: torch.device) -> Extractor:
    """A feature network from the user's file.

    Raises:
        WeightsError: a file that is missing, or is no such network.
    """
    if not file.is_file():
        raise WeightsError(f"--features {kind}={file}: no such file")
    advice = "give the TorchScript file that the StyleGAN metrics use (README.md, evaluate)"
    try:
        with warnings.catch_warnings():  # PyTorch would have torch.export, but these networks are published so
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(file), map_location=device).eval()
    except RuntimeError as error:
        raise WeightsError(f"--features {kind}={file}: not a TorchScript network; {advice}") from error

    @torch.no_grad()
    def extract(windows: NDArray[np.float32]) -> Features:
        rows = []
        for start in range(0, len(windows), 32):
            x = torch.from_numpy(windows[start : start + 32]).to(device)
            x = ((x + 1) * 127.5).round().clamp(0, 255).expand(-1, 3, -1, -1)
            try:
                rows.append(network(x.to(torch.uint8) if kind == "inception" else x, **_CALLS[kind]))
            except RuntimeError as error:
                raise WeightsError(f"--features {kind}={file}: cannot be called as {kind}; {advice}") from error
        return np.asarray(torch.cat(rows).double().cpu().numpy())

    return extract
