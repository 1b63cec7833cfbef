import contextlib
import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defectgen.imaging.images import ImageError, encode_jpeg, encode_png, is_image_file, read_image, read_mask

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
    for name in ("missing.png", "folder.png", "loop.png"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)


def test_a_file_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _mode: str) -> Any:  # root, who runs tests in containers, may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=r"a\.png: Permission denied$"):
        read_image(tmp_path / "a.png")


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    deep = noise((16, 24), "u2")
    for kind, pixels in (("PNG", deep), ("TIFF", deep), ("TIFF", smooth()), ("JPEG", smooth()), ("BMP", smooth())):
        whole = encoded(pixels, kind)
        for _ in range(60):
            data = np.frombuffer(whole, np.uint8).copy()
            data[random.integers(0, min(len(data), 400), 4)] = random.integers(0, 256, 4)
            (tmp_path / "a.png").write_bytes(data.tobytes())
            with contextlib.suppress(ImageError):
                read_image(tmp_path / "a.png")


def test_libraries_print_nothing(tmp_path: Path) -> None:
    (tmp_path / "exif.jpg").write_bytes(encoded(smooth(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"))
    (tmp_path / "cut.tif").write_bytes(BAD["cut16.tif"][0]())
    script = """
import sys
from pathlib import Path
from defectgen.imaging.images import ImageError, read_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, read_image(path).width)
    except ImageError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "exif.jpg 96" in done.stdout
    assert "cut.tif: truncated" in done.stdout
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
