import errno
import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from defectgen.imaging import images
from defectgen.imaging.images import ImageError, encode_jpeg, encode_png, is_image_file, read_image, read_mask
from tests.fuzz import mutations

Array = NDArray[Any]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as images.py has it, which pytest overrides


def noise(shape: tuple[int, ...], dtype: str = "u1") -> Array:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)


def smooth() -> Array:
    """Pixels that JPEG compression hardly changes."""
    return np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)


def saved(path: Path, pixels: Array | Image.Image, **settings: Any) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **settings)
    return path


class TestReadImage:
    @pytest.mark.parametrize(
        ("suffix", "shape"),
        [
            *((suffix, shape) for suffix in (".png", ".bmp", ".tif", ".TIFF") for shape in ((20, 30), (20, 30, 3))),
            (".webp", (20, 30, 3)),  # which has no gray
        ],
    )
    def test_lossless_8_bit(self, tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
        pixels = noise(shape)
        settings = {"lossless": True} if suffix == ".webp" else {}
        read = read_image(saved(tmp_path / f"a{suffix}", pixels, **settings))
        np.testing.assert_array_equal(read.pixels, pixels)
        assert (read.height, read.width, read.channels, read.depth) == (20, 30, 1 if len(shape) == 2 else 3, 8)

    def test_jpeg_colors_are_in_order(self, tmp_path: Path) -> None:
        pixels = np.full((16, 16, 3), (200, 100, 20), np.uint8)
        read = read_image(saved(tmp_path / "a.JPG", pixels, quality=95)).pixels
        assert np.abs(read.astype(int) - pixels).max() <= 3

    def test_alpha_is_kept(self, tmp_path: Path) -> None:
        rgba = noise((20, 30, 4))
        read = read_image(saved(tmp_path / "a.png", rgba))
        np.testing.assert_array_equal(read.pixels, rgba)
        assert read.channels == 3
        gray = Image.fromarray(noise((20, 30, 2)), "LA")
        assert read_image(saved(tmp_path / "b.png", gray)).pixels.shape == (20, 30, 2)
        assert read_image(tmp_path / "b.png").channels == 1

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_16_bit_gray_is_not_clipped(self, tmp_path: Path, suffix: str) -> None:
        ramp = np.linspace(0, 65535, 20 * 30).reshape(20, 30).astype(np.uint16)
        read = read_image(saved(tmp_path / f"a{suffix}", ramp))
        np.testing.assert_array_equal(read.pixels, ramp)
        assert read.depth == 16

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_16_bit_color_is_neither_reduced_nor_swapped(self, tmp_path: Path, suffix: str) -> None:
        pixels = noise((20, 30, 3), "u2")
        (tmp_path / f"a{suffix}").write_bytes(cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes())
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").pixels, pixels)

    @pytest.mark.parametrize("shape", [(20, 30), (20, 30, 2), (20, 30, 3), (20, 30, 4)])
    @pytest.mark.parametrize("interlaced", [False, True])
    def test_16_bit_png_of_each_kind(self, tmp_path: Path, shape: tuple[int, ...], interlaced: bool) -> None:
        pixels = noise(shape, "u2")
        (tmp_path / "a.png").write_bytes(png_16(pixels, interlaced=interlaced))
        read = read_image(tmp_path / "a.png")
        np.testing.assert_array_equal(read.pixels, pixels)
        assert (read.depth, read.channels) == (16, 1 if pixels.ndim == 2 or shape[2] == 2 else 3)

    def test_an_image_of_several_bands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "_BAND", 100)
        deep, palette = noise((20, 30), "u2"), Image.fromarray(noise((20, 30, 3))).quantize(16)
        np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", deep)).pixels, deep)
        palette_read = read_image(saved(tmp_path / "b.png", palette)).pixels
        np.testing.assert_array_equal(palette_read, np.array(palette.convert("RGB")))

    @pytest.mark.parametrize("dtype", ["u1", "u2"])
    def test_tiff_whose_white_is_zero(self, tmp_path: Path, dtype: str) -> None:
        pixels = noise((20, 30), dtype)
        data = tiff_with(encoded(pixels, "TIFF"), 262, 0)
        (tmp_path / "a.tif").write_bytes(data)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, np.iinfo(dtype).max - pixels)

    def test_palettes(self, tmp_path: Path) -> None:
        color = Image.fromarray(noise((20, 30, 3))).quantize(16)
        read = read_image(saved(tmp_path / "a.png", color))
        np.testing.assert_array_equal(read.pixels, np.array(color.convert("RGB")))
        gray = Image.fromarray(noise((20, 30)) // 16 * 16).convert("P")
        gray.putpalette([value for i in range(256) for value in (i, i, i)])
        assert read_image(saved(tmp_path / "b.png", gray)).pixels.ndim == 2

    def test_black_and_white_is_gray(self, tmp_path: Path) -> None:
        one = Image.fromarray(noise((20, 30))).convert("1")
        assert set(np.unique(read_image(saved(tmp_path / "a.png", one)).pixels)) == {0, 255}

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["8.jpg", "8.png", "8.tif", "8.webp", "16.png", "16.tif"])
    def test_exif_orientation_is_applied(self, tmp_path: Path, orientation: int, kind: str) -> None:
        deep = kind.startswith("16")
        pixels = np.add.outer(np.arange(24) * 4, np.arange(40) * 3).astype(np.uint16 if deep else np.uint8)
        pixels = pixels * 100 if deep else pixels
        exif = Image.Exif()
        exif[0x0112] = orientation
        settings = {"lossless": True} if kind == "8.webp" else {}
        read = read_image(saved(tmp_path / f"a{Path(kind).suffix}", pixels, exif=exif, **settings)).pixels
        read = read[..., 0] if kind == "8.webp" else read  # WebP has no gray
        upright = {
            1: pixels, 2: np.fliplr(pixels), 3: np.rot90(pixels, 2), 4: np.flipud(pixels),
            5: pixels.T, 6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).T, 8: np.rot90(pixels),
        }[orientation]  # fmt: skip
        assert read.shape == upright.shape
        assert np.abs(read.astype(int) - upright).max() <= (6 if kind == "8.jpg" else 0)

    @pytest.mark.parametrize("name", ["Prüfling 7 ß.png", "写真.png", "with space.png", "a" * 200 + ".png"])
    def test_any_name(self, tmp_path: Path, name: str) -> None:
        assert read_image(saved(tmp_path / name, noise((8, 8)))).height == 8

    def test_a_file_is_not_touched(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.jpg", smooth())
        before = path.read_bytes(), path.stat().st_mtime_ns
        read_image(path)
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\x0aIDAT"


def png_16(pixels: Array, *, interlaced: bool) -> bytes:
    """A 16-bit PNG with each filter type on some rows; no library here writes all kinds of it."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    channels = pixels.shape[2]
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    raw = b""
    for top, down, left, right in passes if interlaced else [(0, 1, 0, 1)]:
        part = pixels[top::down, left::right].astype(">u2")
        rows = part.view(np.uint8).reshape(part.shape[0], -1).astype(int)
        before = np.pad(rows, ((1, 0), (2 * channels, 0)))[
            :, : rows.shape[1]
        ]  # of the pixel to the left; row 0 is above
        above, left_of = np.pad(rows, ((1, 0), (0, 0)))[:-1], before[1:]
        filtered = [rows, rows - left_of, rows - above, rows - (left_of + above) // 2]
        raw += b"".join(
            bytes([i % 4]) + (filtered[i % 4][i] % 256).astype(np.uint8).tobytes() for i in range(len(rows))
        )
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, color, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def encoded(pixels: Array | Image.Image, kind: str, **settings: Any) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **settings)
    return out.getvalue()


def tiff_with(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value for a tag that has a single one."""
    (first,) = struct.unpack_from("<I", data, 4)
    entries = (first + 2 + 12 * i for i in range(struct.unpack_from("<H", data, first)[0]))
    at = next(entry for entry in entries if struct.unpack_from("<H", data, entry)[0] == tag)
    return data[: at + 2] + struct.pack("<HII", 4, 1, value) + data[at + 12 :]


def animated(kind: str) -> bytes:
    return encoded(smooth(), kind, save_all=True, append_images=[Image.fromarray(smooth()[::-1])])


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "empty"),
    "text.png": (lambda: b"this is not an image", "not an image"),
    "cut.png": (lambda: encoded(noise((64, 96)), "PNG")[:-2000], "truncated"),
    "cut16.png": (lambda: encoded(noise((64, 96), "u2"), "PNG")[:-2000], "truncated"),
    "cut.jpg": (lambda: encoded(smooth(), "JPEG")[:-300], "truncated"),
    "no-end.jpg": (lambda: encoded(smooth(), "JPEG")[:-2], "truncated"),
    "cut.tif": (lambda: encoded(noise((64, 96)), "TIFF")[:3000], "truncated|not an image"),
    "cut16.tif": (lambda: encoded(noise((64, 96), "u2"), "TIFF")[:-500], "truncated"),
    "long16.tif": (lambda: tiff_with(encoded(noise((8, 1), "u2"), "TIFF"), 257, 2**20 + 1), "truncated"),
    "header.tif": (lambda: encoded(noise((8, 8)), "TIFF", compression="tiff_lzw")[:50], "truncated or damaged"),
    "gif.png": (lambda: encoded(smooth(), "GIF"), "not an image in a supported format"),
    "eps.png": (lambda: encoded(smooth(), "EPS"), "not an image in a supported format"),
    "cut.webp": (lambda: encoded(noise((64, 96, 3)), "WEBP")[:200], "truncated|not an image"),
    "cut.bmp": (lambda: encoded(noise((64, 96)), "BMP")[:-500], "truncated"),
    "flipped.png": (lambda: flipped(encoded(noise((64, 96)), "PNG")), "truncated or damaged"),
    "bomb.png": (lambda: png_header(60_000, 60_000), "60000x60000 pixels.*decompression bomb"),
    "cmyk.jpg": (lambda: encoded(Image.new("CMYK", (16, 16)), "JPEG"), "unsupported mode CMYK; save it as"),
    "frames.png": (lambda: animated("PNG"), "has 2 frames; save the one to use as a file of its own"),
    "frames.webp": (lambda: animated("WEBP"), "has 2 frames; save the one to use as a file of its own"),
}


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_their_name_and_reason(tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ImageError, match=f"(?s){name}: .*({reason})"):
        read_image(tmp_path / name)


def jpeg(**settings: Any) -> bytes:
    return encoded(Image.fromarray(noise((48, 64, 3))), "JPEG", quality=80, **settings)


def with_thumbnail() -> bytes:
    """A camera's JPEG: a small one, with an end of its own, in the header of the large one."""
    small = b"Exif\0\0" + encoded(smooth()[:16, :16], "JPEG")
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(small) + 2) + small + jpeg()[2:]


@pytest.mark.parametrize(
    "make", [jpeg, lambda: jpeg(progressive=True), lambda: jpeg(restart_marker_rows=1), with_thumbnail]
)
def test_a_jpeg_cut_anywhere_is_refused(tmp_path: Path, make: Callable[[], bytes]) -> None:
    data = make()
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert read_image(path).pixels.shape == (48, 64, 3)
    for end in {*np.linspace(1, len(data) - 1, 60).astype(int).tolist(), *range(len(data) - 8, len(data))}:
        path.write_bytes(data[:end])
        with pytest.raises(ImageError):
            read_image(path)


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\xff\xda", b"\xff\xd8\xff\xda\0\0", b"\xff\xd9"])
def test_a_jpeg_with_bytes_after_its_end_is_fine(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "JPEG") + tail)
    assert read_image(tmp_path / "a.jpg").height == 64


def test_the_first_of_several_images_in_a_jpeg_is_read(tmp_path: Path) -> None:
    data = encoded(smooth(), "MPO", save_all=True, append_images=[Image.fromarray(smooth())])
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_image(tmp_path / "a.jpg").pixels.shape == (64, 96)
    (tmp_path / "a.jpg").write_bytes(data[: data.index(b"\xff\xd9")])
    with pytest.raises(ImageError, match="truncated"):
        read_image(tmp_path / "a.jpg")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    reasons = {
        "missing.png": "No such file", "broken.png": "No such file", "loop.png": "symbolic links",
        "folder.png": "is a folder, not a file",
    }  # fmt: skip
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        reasons |= {"pipe.png": "is a named pipe, not a file", "zero.png": "is a device, not a file"}
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=f"{name}: .*{reason}"):
            read_image(tmp_path / name)


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.write(encoded(smooth(), "PNG"))
        file.truncate(40 << 30)
    with pytest.raises(ImageError, match="42949672960 bytes are more than an image"):
        read_image(tmp_path / "sparse.png")


def test_images_decoded_at_the_same_time_share_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, running, most = saved(tmp_path / "a.png", noise((100, 100, 3))), 0, 0
    lock = threading.Lock()

    def counted(data: bytes, formats: tuple[str, ...]) -> tuple[Any, int]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return noise((100, 100)), 1

    monkeypatch.setattr(images, "_decode", counted)
    needed = 100 * 100 * 4 * 2 + path.stat().st_size
    for budget, expected in ((10 * needed, 4), (2 * needed, 2), (needed // 2, 1)):
        monkeypatch.setattr(images, "_budget", images._Budget(budget))
        most = 0
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(read_image, [path] * 12))) == 12
        assert most <= expected
        assert most == expected or expected == 4  # a busy machine may not start all four


def test_a_failed_image_gives_its_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut.png").write_bytes(BAD["cut.png"][0]())
    monkeypatch.setattr(images, "_budget", images._Budget(1))
    for _ in range(2):
        with pytest.raises(ImageError, match="truncated"):
            read_image(tmp_path / "cut.png")


def test_a_file_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _mode: str) -> Any:  # root, who runs tests in containers, may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.png: Permission denied$"):
        read_image(tmp_path / "a.png")


def kinds_of_files() -> dict[str, bytes]:
    """Small files of each kind that another part of a library decodes."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    rgb, deep, deep_rgb = noise((16, 24, 3)), noise((16, 24), "u2"), noise((16, 24, 3), "u2")
    out = io.BytesIO()
    tifffile.imwrite(out, np.moveaxis(deep_rgb, 2, 0), photometric="rgb", planarconfig="separate", compression="zlib")
    return {
        "planes.tif": out.getvalue(),
        "lzw16.tif": cv2.imencode(".tif", deep_rgb)[1].tobytes(),
        "16.tif": encoded(deep, "TIFF"),
        "8.tif": encoded(smooth(), "TIFF", exif=exif),
        "g4.tif": encoded(Image.fromarray(smooth() > 80), "TIFF", compression="group4"),
        **{
            f"{each}.tif": encoded(rgb, "TIFF", compression=each) for each in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")
        },
        "16.png": encoded(deep, "PNG"),
        "color16.png": cv2.imencode(".png", deep_rgb)[1].tobytes(),
        "palette.png": encoded(Image.fromarray(rgb).quantize(16), "PNG", exif=exif),
        "frames.png": animated("PNG"),
        "gray.jpg": encoded(smooth(), "JPEG", exif=exif),
        "color.jpg": encoded(rgb, "JPEG", progressive=True),
        "two.jpg": encoded(smooth(), "MPO", save_all=True, append_images=[Image.fromarray(smooth())]),
        "gray.bmp": encoded(smooth(), "BMP"),
        "color.webp": encoded(rgb, "WEBP", exif=exif),
    }


def test_of_damaged_files_each_is_read_or_refused_and_no_library_prints(tmp_path: Path) -> None:
    for name, data in kinds_of_files().items():
        for number, damaged in enumerate(mutations(data, 14)):
            (tmp_path / f"{number}-{name}").write_bytes(damaged)
    (tmp_path / "exif.jpg").write_bytes(encoded(smooth(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"))
    script = """
import sys
from pathlib import Path
from defectgen.imaging import images
from defectgen.imaging.images import ImageError, read_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_image(path)
        print("read", path.name)
    except ImageError as error:
        print("refused", error)
    except BaseException as error:
        print("wrong", path.name, repr(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith(("read ", "refused "))] == []
    assert len(lines) == len(list(tmp_path.iterdir()))
    assert min(sum(line.startswith(what) for line in lines) for what in ("read", "refused")) > 40
    assert done.stderr == ""


class TestReadMask:
    @pytest.mark.parametrize("high", [1, 255])
    def test_two_values(self, tmp_path: Path, high: int) -> None:
        wanted = noise((20, 30)) > 127
        np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", wanted.astype(np.uint8) * high)), wanted)

    def test_gray_stored_as_color_or_palette(self, tmp_path: Path) -> None:
        wanted = noise((20, 30)) > 127
        gray = wanted.astype(np.uint8) * 255
        for number, image in enumerate((np.dstack([gray] * 3), np.dstack([gray] * 3 + [gray * 0 + 255]))):
            np.testing.assert_array_equal(read_mask(saved(tmp_path / f"{number}.png", image)), wanted)
        np.testing.assert_array_equal(read_mask(saved(tmp_path / "p.png", Image.fromarray(gray).convert("P"))), wanted)

    @pytest.mark.parametrize("high", [1, 255])
    def test_all_white(self, tmp_path: Path, high: int) -> None:
        assert read_mask(saved(tmp_path / "m.png", np.full((5, 5), high, np.uint8))).all()

    @pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (200, 30, 30)])
    @pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (9, 200, 9)])
    def test_a_stencil_is_read_from_its_alpha_channel(
        self, tmp_path: Path, color: tuple[int, ...], background: tuple[int, ...]
    ) -> None:
        wanted = noise((20, 30)) > 127
        colors = np.where(wanted[..., None], color, background)
        path = saved(tmp_path / "m.png", np.dstack([colors, wanted * 255]).astype(np.uint8))
        if (color, background) == ((0, 0, 0), (255, 255, 255)):
            with pytest.raises(ImageError, match="marks places that its alpha channel hides; save it without alpha"):
                read_mask(path)
        else:
            np.testing.assert_array_equal(read_mask(path), wanted)
        gray = np.dstack([np.full((20, 30), 255), wanted * 255]).astype(np.uint8)
        np.testing.assert_array_equal(read_mask(saved(tmp_path / "g.png", Image.fromarray(gray, "LA"))), wanted)

    def test_colors_that_vary_with_an_alpha_channel_that_does_not_are_read_from_the_colors(
        self, tmp_path: Path
    ) -> None:
        wanted = noise((20, 30)) > 127
        for alpha in (0, 255):
            pixels = np.dstack([wanted * 255] * 3 + [np.full((20, 30), alpha)]).astype(np.uint8)
            np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", pixels)), wanted)
        shown = noise((20, 30), "u2") % 3 > 0  # a mask within an outline
        pixels = np.dstack([(wanted & shown) * 255] * 3 + [shown * 255]).astype(np.uint8)
        np.testing.assert_array_equal(read_mask(saved(tmp_path / "o.png", pixels)), wanted & shown)

    def test_an_alpha_channel_with_soft_edges_is_not_guessed(self, tmp_path: Path) -> None:
        pixels = np.dstack([np.zeros((8, 8, 3), np.uint8), noise((8, 8)) // 4])
        with pytest.raises(ImageError, match="an alpha channel that has the values .* not 0 and 255"):
            read_mask(saved(tmp_path / "m.png", pixels))

    def test_all_black(self, tmp_path: Path) -> None:
        assert not read_mask(saved(tmp_path / "m.png", np.zeros((5, 5), np.uint8))).any()

    @pytest.mark.parametrize(
        ("pixels", "reason"),
        [
            (np.array([[0, 1, 2]], np.uint8), "values 0, 1, 2.*255 on the defect"),
            (np.array([[0, 128]], np.uint8), "values 0, 128"),
            (np.array([[254, 254]], np.uint8), "values 254"),
            (np.array([[0, 65535]], np.uint16), "values 0, 65535"),
            (
                np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8),
                r"has colors, such as the RGB values \(255, 0, 0\); .*one black and white mask for each category",
            ),
        ],
    )
    def test_other_values_are_explained_not_guessed(self, tmp_path: Path, pixels: Array, reason: str) -> None:
        with pytest.raises(ImageError, match=reason):
            read_mask(saved(tmp_path / "m.png", pixels))

    def test_a_jpeg_mask_is_refused_with_advice(self, tmp_path: Path) -> None:
        mask = (np.hypot(*np.ogrid[-20:20, -20:20]) < 9).astype(np.uint8) * 255
        with pytest.raises(ImageError, match="save masks as PNG"):
            read_mask(saved(tmp_path / "m.jpg", mask))


class TestEncode:
    @pytest.mark.parametrize("shape", [(9, 7), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
    @pytest.mark.parametrize("dtype", ["u1", "u2"])
    def test_png_is_read_back_the_same(self, tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
        pixels = noise(shape, dtype)
        (tmp_path / "a.png").write_bytes(encode_png(pixels))
        read = read_image(tmp_path / "a.png").pixels
        if shape[2:] == (2,) and dtype == "u2":  # PNG by OpenCV has no 16-bit gray with alpha
            pixels = pixels[..., [0, 0, 0, 1]]
        np.testing.assert_array_equal(read, pixels)

    def test_jpeg_keeps_the_order_of_colors(self) -> None:
        pixels = np.full((16, 16, 3), (200, 100, 20), np.uint8)
        read = np.array(Image.open(io.BytesIO(encode_jpeg(pixels))))
        assert np.abs(read.astype(int) - pixels).max() <= 4


@pytest.mark.parametrize(("name", "taken"), [("a.PNG", True), ("a.jpeg", True), ("a.gif", False), ("png", False)])
def test_is_image_file(name: str, taken: bool) -> None:
    assert is_image_file(Path(name)) is taken


def test_a_missing_library_of_opencv_is_one_line_with_advice(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "defectgen", "train", "--method", "dt-gan", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "libgl1" in done.stderr
    assert "opencv-python-headless" in done.stderr
