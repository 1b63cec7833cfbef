import numpy as np
import pytest

from defectgen.folders import ProductFolders
from defectgen.imaging.images import encode_png


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ProductFolders:
    """Gray noise; the defects carry a bright square."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("normals", "defects/spot", "masks/spot"):
        (folder / name).mkdir(parents=True)
    for i in range(3):
        pixels = rng.integers(80, 120, (48, 64), np.uint8)
        (folder / f"normals/{i}.png").write_bytes(encode_png(pixels))
        mask = np.zeros_like(pixels)
        mask[10:20, 10 + i : 20 + i] = 255
        pixels[mask > 0] = 230
        (folder / f"defects/spot/{i}.png").write_bytes(encode_png(pixels))
        (folder / f"masks/spot/{i}.png").write_bytes(encode_png(mask))
    return ProductFolders(product="part", normals=folder / "normals", defects=folder / "defects")
