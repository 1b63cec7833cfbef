"""Decoding and encoding of image files. All images are read here.

Python opens the files and the decoders get bytes, so that any file name works. Pillow decodes 8-bit images. Its
conversions clip 16-bit images, so those are taken unconverted or decoded by OpenCV. Input files are never modified.
"""

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from defectgen.errors import BadInputError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 2**28
"""The largest accepted image, such as 16384 x 16384 or 8192 x 32768 (line scan): larger may be a decompression bomb."""

Image.MAX_IMAGE_PIXELS = None  # replaced by MAX_PIXELS, checked before decoding
# ImageError gives the reason why a file is bad. Pillow's own warnings would break the progress bar.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP")  # no others of Pillow's: its EPS reader starts a program
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # a marker with a segment, or the end (FFD9)
_PILLOW_MODES = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
_ORIENTATIONS: dict[int, Any] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


class ImageError(BadInputError):
    """A file that is not a usable image or mask: its path and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image, with its EXIF orientation applied.

    `pixels` is C-contiguous, uint8 or uint16: [H, W] gray, [H, W, 2] gray and alpha, [H, W, 3] RGB, [H, W, 4] RGBA.
    """

    pixels: Pixels
    limits: tuple[float, float] | None = None
    """The pixel values that count as black and white, if they are not the image's own: see `windows.value_range`."""

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def channels(self) -> int:
        """The number of color channels, without alpha: 1 or 3."""
        return 1 if self.pixels.ndim == 2 or self.pixels.shape[2] == 2 else 3

    @property
    def depth(self) -> int:
        """Bits per channel: 8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    @property
    def colors(self) -> Pixels:
        """The pixels without alpha, [H, W, channels]."""
        return self.pixels.reshape(self.height, self.width, -1)[..., : self.channels]

    def as_rgb(self) -> NDArray[np.uint8]:
        """For display: 8-bit RGB, [H, W, 3]. 16-bit values are scaled from their minimum and maximum to 0 and 255."""
        pixels = self.pixels if self.pixels.ndim == 3 else self.pixels[..., None]
        pixels = pixels[..., : self.channels]
        if pixels.dtype == np.uint16:
            low, high = int(pixels.min()), max(int(pixels.max()), int(pixels.min()) + 1)
            pixels = ((pixels.astype(np.float32) - low) * (255 / (high - low))).astype(np.uint8)
        return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), np.uint8, order="C")


def is_image_file(path: Path) -> bool:
    """Whether a file has the suffix of a supported format, in upper or lower case."""
    return path.suffix.lower() in SUFFIXES


def read_image(path: Path) -> DecodedImage:
    """Decode an image file completely.

    Raises:
        ImageError: the file is unreadable, truncated, damaged, too large or of an unsupported format or mode.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(path, error.strerror or str(error)) from error
    if not data:
        raise ImageError(path, "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    path,
                    f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}: possibly a decompression bomb",
                )
            pixels = _decode_16(path, data, image) if _is_16_bit(data, image) else _decode_8(path, data, image)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if image.format == "TIFF" and pixels.dtype == np.uint16:
                orientation = 1  # OpenCV has applied it already, which it does for TIFF only
    except UnidentifiedImageError as error:
        reason = "not an image in a supported format (PNG, JPEG, BMP, TIFF, WebP), or its header is damaged"
        raise ImageError(path, reason) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(path, f"truncated or damaged ({error})") from error
    transform = _ORIENTATIONS.get(orientation)
    return DecodedImage(np.ascontiguousarray(transform(pixels) if transform else pixels))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Decode a mask, [H, W]. Its gray values must be 0 and 255, or 0 and 1; others are an error, not thresholded.

    Raises:
        ImageError: as `read_image`, or the mask has colors or other values. The message lists the values found.
    """
    pixels = read_image(path).pixels
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[..., :-1]
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise ImageError(
                path, "the mask has colors; write one black and white mask for each category, 255 on the defect"
            )
        pixels = pixels[..., 0]
    values = np.unique(pixels)
    if len(values) > 2 or values[0] != 0 or values[-1] not in (0, 1, 255):
        shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
        advice = (
            "JPEG compression changes values; save masks as PNG"
            if path.suffix.lower() in (".jpg", ".jpeg")
            else "write 255 on the defect and 0 elsewhere"
        )
        raise ImageError(path, f"the mask has the values {shown}, not 0 and 255 (or 0 and 1); {advice}")
    return pixels != 0


def encode_png(pixels: Pixels) -> bytes:
    """Encode pixels as PNG: [H, W], [H, W, 2], [H, W, 3] or [H, W, 4], 8 or 16 bits."""
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        if pixels.dtype == np.uint8:  # OpenCV does not support gray with alpha
            out = io.BytesIO()
            Image.fromarray(pixels, "LA").save(out, "PNG")
            return out.getvalue()
        pixels = pixels[..., [0, 0, 0, 1]]
    return _encode(".png", pixels)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Encode 8-bit pixels as JPEG: [H, W] or [H, W, 3]. `quality` is 0 to 100."""
    return _encode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encode(suffix: str, pixels: Pixels, settings: list[int] | None = None) -> bytes:
    done, data = cv2.imencode(suffix, _swap_rgb_bgr(pixels), settings or [])
    if not done:
        raise ValueError(f"OpenCV cannot encode {pixels.shape} {pixels.dtype} as {suffix}")
    return bytes(data)


def _swap_rgb_bgr(pixels: Any) -> Any:
    """RGB(A) to OpenCV's BGR(A), or the reverse. Gray is returned unchanged."""
    if pixels.ndim == 2:
        return pixels
    return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _is_16_bit(data: bytes, image: Image.Image) -> bool:
    """Whether the file's header says 16 bits. Pillow's mode does not tell: it opens 16-bit color as 8-bit."""
    if isinstance(image, TiffImageFile):
        return 16 in image.tag_v2.get(ExifTags.Base.BitsPerSample, ())
    return image.mode.startswith("I;16") or (image.format == "PNG" and data[24] == 16)  # IHDR's bit depth


def _decode_16(path: Path, data: bytes, image: Image.Image) -> Pixels:
    if image.format == "PNG":
        image.load()  # raises if truncated; OpenCV would fill in the missing rows
        if image.mode.startswith("I"):
            return np.array(image).astype(np.uint16)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # a side exceeds its limit
        pixels = None
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError(path, f"truncated, damaged, or a 16-bit {image.format} that OpenCV cannot read")
    if isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
        pixels = 65535 - pixels  # WhiteIsZero, as X-ray scanners write
    return np.asarray(_swap_rgb_bgr(pixels))


def _decode_8(path: Path, data: bytes, image: Image.Image) -> Pixels:
    mode = _PILLOW_MODES.get(image.mode)
    if image.mode == "P":
        mode = "RGBA" if "transparency" in image.info else "RGB"
    if mode is None:
        raise ImageError(path, f"unsupported mode {image.mode}; save it as 8-bit gray or RGB, or 16-bit gray")
    image.load()
    if image.format in ("JPEG", "MPO") and not _jpeg_ends(data):
        raise ImageError(path, "truncated: the JPEG has no end marker")
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    gray_palette = image.mode == "P" and mode == "RGB" and (pixels == pixels[..., :1]).all()
    return pixels[..., 0] if gray_palette else pixels


def _jpeg_ends(data: bytes) -> bool:
    """Whether the end marker follows the last scan, which Pillow does not check. Bytes after it are ignored."""
    at = 2
    while marker := _MARKER.search(data, at):
        kind = data[marker.end() - 1]
        if kind == 0xD9:
            return True
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
