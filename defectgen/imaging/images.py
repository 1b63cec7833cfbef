"""Decoding and encoding of image files. All images are read here.

Python opens the files and the decoders get bytes, so that any file name works. Pillow decodes 8-bit images, and PNGs of
16 bits; `tiff` decodes TIFFs of more than 8 bits. Input files are never modified.
"""

import ctypes
import io
import logging
import re
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging

from defectgen.errors import BadInputError
from defectgen.imaging import tiff
from defectgen.imaging.tiff import UnsupportedError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
ALIASES = frozenset({".jpe", ".jfif", ".jif", ".jfi", ".dib"})
"""Suffixes that belong to supported formats, too. Only `inspect`, which lets nothing through, reads such files."""
OTHER_FORMATS = frozenset({
    ".3fr", ".apng", ".arw", ".avif", ".bpg", ".cr2", ".cr3", ".cur", ".czi", ".dcm", ".dds", ".dicom", ".dng",
    ".emf", ".eps", ".exr", ".fit", ".fits", ".fts", ".gif", ".hdp", ".hdr", ".heic", ".heif", ".hif", ".icns",
    ".ico", ".iiq", ".ima", ".img", ".j2c", ".j2k", ".jls", ".jng", ".jp2", ".jpc", ".jpf", ".jpm", ".jpx", ".jxl",
    ".jxr", ".lsm", ".mng", ".mpo", ".mrw", ".nd2", ".ndpi", ".nef", ".nrw", ".orf", ".pam", ".pbm", ".pcd", ".pcx",
    ".pef", ".pfm", ".pgm", ".pict", ".pnm", ".ppm", ".ps", ".psb", ".psd", ".qoi", ".raf", ".ras", ".raw", ".rgb",
    ".rgba", ".rw2", ".sgi", ".sr2", ".srf", ".srw", ".svg", ".svs", ".tga", ".wbmp", ".wdp", ".wmf", ".x3f", ".xbm",
    ".xcf", ".xpm",
})  # fmt: skip
"""Suffixes of formats that are not read. Some of them are a TIFF or PNG inside, of which only a preview would be."""
MAX_PIXELS = 2**28
"""The largest accepted image, such as 16384 x 16384 or 8192 x 32768 (line scan): larger may be a decompression bomb."""

_MAX_BYTES = 8 * MAX_PIXELS + 2**26  # 16-bit RGBA, uncompressed, and metadata: larger files are not read
_MEMORY = 2**31  # bytes that the decoding of images may take at a time, unless a single one takes more

_BAND = 2**22  # pixels

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP")  # no others of Pillow's: its EPS reader starts a program
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # a marker with a segment, or the end (FFD9)
_PILLOW_MODES = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
_KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
ORIENTATIONS: dict[int, Any] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""What turns the pixels of a file upright, by their EXIF orientation, if it does anything."""


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


def _silence() -> None:
    """Keep the lines of libraries off stderr, where they would break the progress bar: `ImageError` gives the reason.

    libtiff in Pillow writes to stderr by itself. Where Pillow links it statically, as on Windows, it still does.
    """
    Image.MAX_IMAGE_PIXELS = None  # replaced by MAX_PIXELS, checked before decoding
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("ignore", module=r"tifffile")
    for name in ("PIL", "tifffile"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    with suppress(AttributeError):  # the place of this function differs between versions
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


_silence()


class _Budget:
    """Bytes of memory that threads share. One that needs more than there are waits until it is alone."""

    def __init__(self, size: int) -> None:
        self._size, self._free = size, size
        self._changed = Condition()

    @contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Wait for `size` bytes, and hold them. A thread that holds some must not ask for more."""
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


_budget = _Budget(_MEMORY)


def read_image(path: Path) -> DecodedImage:
    """Decode an image file completely.

    Threads that decode at the same time take `_MEMORY` bytes together, unless a single image takes more.

    Raises:
        ImageError: the file is unreadable, truncated, damaged, too large, of an unsupported format or mode, or has
            several frames or pages.
    """
    try:
        _require_file(path)
        with path.open("rb") as file:
            return DecodedImage(_read(file))
    except MemoryError:
        raise
    except Exception as error:  # on damaged files the decoders raise errors of all kinds
        raise ImageError(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    """Why an image cannot be read, on one line."""
    if isinstance(error, UnsupportedError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a supported format (PNG, JPEG, BMP, TIFF, WebP), or its header is damaged"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    detail = " ".join(str(error).split())[:200]
    return f"truncated or damaged ({detail or type(error).__name__})"


def _require_file(path: Path) -> None:
    """Refuse what is no regular file, before it is opened: reading a named pipe waits, and a device never ends."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS.items() if test(found.st_mode)), "a device")
        raise UnsupportedError(f"is {kind}, not a file")
    if found.st_size == 0:
        raise UnsupportedError("the file is empty")
    if found.st_size > _MAX_BYTES:
        raise UnsupportedError(f"{found.st_size} bytes are more than an image of {MAX_PIXELS} pixels takes")


def _read(file: BinaryIO) -> Pixels:
    """The pixels of an image file, with its orientation applied."""
    is_tiff = file.read(4) in tiff.MAGIC
    file.seek(0)
    needed = _needed_for_tiff(file) if is_tiff else _needed(file)
    file.seek(0)
    with _budget.reserved(needed):
        pixels, orientation = _decode_tiff(file.read()) if is_tiff else _decode(file.read(), _FORMATS)
        transform = ORIENTATIONS.get(orientation)
        return np.ascontiguousarray(transform(pixels) if transform else pixels)


def _needed(file: BinaryIO) -> int:
    """The bytes that decoding takes, by the header: those of the file, in the decoder, and of the pixels."""
    with Image.open(file, formats=_FORMATS) as image:
        channels = 1 if image.mode in ("1", "L") or image.mode.startswith("I") else 4  # as Pillow stores them
        area = _area(image.width, image.height)
        file.seek(0)
        depth = 2 if _is_png_16(image, file.read(25)) else 1
        return file.seek(0, io.SEEK_END) + area * channels * depth * 2


def _needed_for_tiff(file: BinaryIO) -> int:
    with tiff.opened(file) as page:
        area, depth = _area(page.width, page.height), 2 if page.depth > 8 else 1
        return file.seek(0, io.SEEK_END) + area * (1 if page.channels == 1 else 4) * depth * 2


def _area(width: int, height: int) -> int:
    if width * height > MAX_PIXELS:
        raise UnsupportedError(f"{width}x{height} pixels are more than {MAX_PIXELS}: possibly a decompression bomb")
    return width * height


def read_mask(path: Path, threshold: int | None = None) -> NDArray[np.bool_]:
    """Decode a mask, [H, W]. Its gray values must be 0 and 255, or 0 and 1; others are an error, not thresholded.

    A stencil, of one color on a transparent one, is read from its alpha channel, which must be 0 and 255.

    Args:
        threshold: accept all values; the pixels that have at least this one in any channel are marked.

    Raises:
        ImageError: as `read_image`, or the mask has colors or other values. The message lists the values found.
    """
    pixels = read_image(path).pixels
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] in (1, 3):
        return _marked(path, pixels, "the mask", threshold)
    colors, alpha = pixels[..., :-1], pixels[..., -1:]
    if _is_stencil(colors, alpha[..., 0]):
        return _marked(path, alpha, "the mask, whose colors show nothing, has an alpha channel that", threshold)
    marked = _marked(path, colors, "the mask", threshold)
    if alpha.any() and marked[alpha[..., 0] == 0].any():
        raise ImageError(path, "the mask marks places that its alpha channel hides; save it without alpha")
    return marked


def _is_stencil(colors: Pixels, alpha: Pixels) -> bool:
    """Whether only the alpha channel tells where a mask is: the colors where it is 0 and elsewhere are no mask."""
    if alpha.min() == alpha.max():
        return False
    shown, hidden = colors[alpha != 0], colors[alpha == 0]
    hidden = hidden if len(hidden) else shown
    if (shown != shown[0]).any() or (hidden != hidden[0]).any():
        return False
    two = {tuple(shown[0].tolist()), tuple(hidden[0].tolist())}
    black, *whites = ((value,) * colors.shape[2] for value in (0, 1, 255))
    return two not in [{black, white} for white in whites]


def _marked(path: Path, pixels: Pixels, what: str, threshold: int | None) -> NDArray[np.bool_]:
    """Where pixels, [H, W, C], are not black: [H, W]. `what` they are begins the reason why they are no mask."""
    if threshold is not None:
        return np.asarray(pixels.max(axis=2) >= threshold)
    colored = (pixels != pixels[..., :1]).any(axis=2)
    if colored.any():
        color = tuple(pixels[colored][0].tolist())
        advice = "write one black and white mask for each category, or name them: --mask-values '#ff0000=crack'"
        raise ImageError(path, f"{what} has colors, such as the RGB values {color}; {advice}")
    gray = pixels[..., 0]
    marked = gray != 0
    high = int(gray.max())
    if high in (0, 1, 255) and (gray[marked] == high).all():
        return marked
    values = np.unique(gray)
    shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    if path.suffix.lower() in (".jpg", ".jpeg"):
        advice = "JPEG compression changes values; save masks as PNG, or use --mask-threshold 128"
    elif len(values) > 6:
        advice = "write 255 on the defect and 0 elsewhere, or use --mask-threshold 128"
    else:
        advice = f"write 255 on the defect and 0 elsewhere, or say what they mark: --mask-values {values[-1]}=crack"
    raise ImageError(path, f"{what} has the values {shown}, not 0 and 255 (or 0 and 1); {advice}")


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


def _decode_tiff(data: bytes) -> tuple[Pixels, int]:
    with tiff.opened(io.BytesIO(data)) as page:
        return _decode(tiff.page_first(data, page), ("TIFF",)) if page.by_pillow else tiff.decode(data, page)


def _decode(data: bytes, formats: tuple[str, ...]) -> tuple[Pixels, int]:
    """The pixels of a file, and its EXIF orientation, by Pillow."""
    with Image.open(io.BytesIO(data), formats=formats) as image:
        frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1
        if frames > 1:
            raise UnsupportedError(f"has {frames} frames; save the one to use as a file of its own")
        pixels = _decode_png_16(data, image) if _is_png_16(image, data) else _decode_8(data, image)
        return pixels, image.getexif().get(ExifTags.Base.Orientation, 1)


def _is_png_16(image: Image.Image, head: bytes) -> bool:
    """Whether IHDR gives a depth of 16 bits. Pillow's mode does not tell: it opens 16-bit color as 8-bit."""
    return image.format == "PNG" and head[24] == 16


def _decode_png_16(data: bytes, image: Image.Image) -> NDArray[np.uint16]:
    """Pillow keeps one byte of each value of a 16-bit color, so the two are decoded one after the other."""
    if image.mode.startswith("I"):
        return _to_array(image, image.mode).astype(np.uint16)
    if data[25] == 4:  # IHDR's color type of gray and alpha: the same bytes as those of 8-bit RGBA
        header = data[12:24] + b"\x08\x06" + data[26:29]
        data = data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
        with Image.open(io.BytesIO(data), formats=("PNG",)) as as_bytes:
            return _to_array(as_bytes, "RGBA").view(">u2").astype(np.uint16)
    pixels = np.left_shift(_to_array(image, image.mode), 8, dtype=np.uint16)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
        low: Any = again
        low.tile = [(*low.tile[0][:3], f"{image.mode};16L")]
        pixels |= _to_array(again, image.mode)
    return pixels


def _decode_8(data: bytes, image: Image.Image) -> NDArray[np.uint8]:
    mode = _PILLOW_MODES.get(image.mode)
    if image.mode == "P":
        mode = "RGBA" if "transparency" in image.info else "RGB"
    if mode is None:
        raise UnsupportedError(f"unsupported mode {image.mode}; {tiff.ADVICE}")
    image.load()
    if image.format in ("JPEG", "MPO") and not _jpeg_ends(data):
        raise UnsupportedError("truncated: the JPEG has no end marker")
    pixels = _to_array(image, mode)
    gray_palette = image.mode == "P" and mode == "RGB" and (pixels == pixels[..., :1]).all()
    return pixels[..., 0] if gray_palette else pixels


def _to_array(image: Image.Image, mode: str) -> NDArray[Any]:
    """The pixels in a mode. Band by band: Pillow copies what it hands over, and would hold all of it three times."""
    image.load()
    rows = max(1, _BAND // image.width)
    out: NDArray[Any] | None = None
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        values = np.asarray(band if band.mode == mode else band.convert(mode))
        if out is None:
            out = np.empty((image.height, *values.shape[1:]), values.dtype)
        out[top : top + rows] = values
    assert out is not None  # Pillow opens no image without rows
    return out


def _jpeg_ends(data: bytes) -> bool:
    """Whether the end marker follows the last scan, which Pillow does not check. Bytes after it are ignored."""
    at = 2
    while marker := _MARKER.search(data, at):
        kind = data[marker.end() - 1]
        if kind == 0xD9:
            return True
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
