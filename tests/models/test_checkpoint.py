import json
import random
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from defectgen.errors import DiskFullError, WeightsError
from defectgen.models import checkpoint

CONFIG = {
    "method": "dt-gan",
    "categories": ["Kratzer äöü", "crack"],
    "steps": 100,
    "scale": 0.5,
    "none": None,
}


def tensors() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "weight": torch.randn(3, 4, 5, generator=rng),
        "half": torch.randn(7, generator=rng).half(),
        "bfloat": torch.randn(2, 2, generator=rng).bfloat16(),
        "step": torch.tensor(12),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, tensors(), CONFIG)
    return path


def test_saved_tensors_and_configuration_are_loaded(saved: Path) -> None:
    loaded, config = checkpoint.load(saved)
    assert config == CONFIG
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_any_memory_layout_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    image = torch.arange(48.0).reshape(1, 3, 4, 4)
    weight = torch.nn.Parameter(torch.ones(2, 3))
    checkpoint.save(
        path, {"last": image.to(memory_format=torch.channels_last), "turned": image[0, 0].T, "w": weight}, {}
    )
    loaded, _ = checkpoint.load(path)
    assert torch.equal(loaded["last"], image)
    assert torch.equal(loaded["turned"], image[0, 0].T)
    assert torch.equal(loaded["w"], torch.ones(2, 3))


def test_the_file_is_safetensors_with_a_mode_from_the_umask(saved: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved, framework="numpy") as file:
        assert file.get_tensor("weight").shape == (3, 4, 5)
    plain = saved.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_loaded_tensors_outlive_their_file(saved: Path) -> None:
    loaded, _ = checkpoint.load(saved)
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert torch.equal(loaded["weight"], tensors()["weight"])


def test_the_same_contents_make_the_same_file(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    checkpoint.save(again, dict(reversed(tensors().items())), dict(reversed(CONFIG.items())))
    assert again.read_bytes() == saved.read_bytes()


def test_every_flipped_bit_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    flips = [(position, bit) for position in range(len(whole)) for bit in range(8)]
    some = random.Random(2).sample(flips, 800)  # noqa: S311
    for position, bit in [*some, *flips[: 8 * 16], *flips[-8 * 16 :]]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        saved.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            checkpoint.load(saved)


def test_every_truncation_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(0, len(whole), 7):
        saved.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            checkpoint.load(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        checkpoint.load(saved)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"missing\.safetensors: no such file"):
        checkpoint.load(tmp_path / "missing.safetensors")
    with pytest.raises(WeightsError, match=str(tmp_path)):
        checkpoint.load(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    with pytest.raises(WeightsError, match="not written by defectgen"):
        checkpoint.load(foreign)
    text = tmp_path / "notes.txt"
    text.write_text("hello, this is no model at all")
    with pytest.raises(WeightsError, match=r"notes\.txt"):
        checkpoint.load(text)


def test_a_full_disk_leaves_the_earlier_file(saved: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(DiskFullError, match=r"model\.safetensors"):
            checkpoint.save(saved, {"large": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint.load(saved)[1] == CONFIG
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def with_header(data: bytes, header: bytes, length: int | None = None) -> bytes:
    """The file with another header, and that length or another in front of it."""
    old = int.from_bytes(data[:8], "little")
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data[8 + old :]


def test_every_damaged_header_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    record = json.loads(header)
    rng = random.Random(7)  # noqa: S311
    values: list[Any] = [None, -1, 2**63, 1e300, "", "F4", "U8", [], [2**62, 4], [-1], {}, [[]], True, "\0"]
    damaged = [with_header(whole, header, length) for length in (0, 1, 2**40, 2**63, 2**64 - 1)]
    damaged += [with_header(whole, b"[" * 100_000), with_header(whole, b"null"), with_header(whole, b"\xff\xfe{}")]
    for _ in range(150):
        changed = json.loads(json.dumps(record))
        name = rng.choice(sorted(changed))
        if name == "__metadata__":
            inner = rng.choice(["", "null", "[]", "{}", '{"config": null, "sha256": 3}', "[" * 100_000, "1"])
            changed[name] = rng.choice([{"defectgen": inner}, {}, *values])
        else:
            key = rng.choice(sorted(changed[name]))
            value = rng.choice(values)
            if changed[name][key] == value:
                continue
            changed[name][key] = value
        damaged.append(with_header(whole, json.dumps(changed).encode()))
    for data in damaged:
        saved.write_bytes(data)
        with pytest.raises(WeightsError, match=r"model\.safetensors: "):
            checkpoint.load(saved)


@pytest.mark.parametrize("config", [None, [], "text", 3, {}, {"method": "x"}])
def test_a_whole_file_of_another_kind_is_refused(tmp_path: Path, config: Any) -> None:
    checkpoint.save(tmp_path / "other.safetensors", {}, config)
    with pytest.raises(WeightsError, match=r"other\.safetensors: another kind of file"):
        checkpoint.load(tmp_path / "other.safetensors", "identity")
