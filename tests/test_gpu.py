"""What only a CUDA device shows; each test is skipped without one.

`tests/training/test_trainer.py` has a training that is resumed on a GPU.
"""

import filecmp
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectgen import methods, ranks
from defectgen.device import torch_rng
from defectgen.errors import OutOfMemoryError
from defectgen.folders import ProductFolders, read_catalog
from defectgen.methods.base import Batch, GenerateBatch, Method
from defectgen.models.model import build
from defectgen.nn import layers
from defectgen.nn.layers import Noise, mixed_precision
from defectgen.training.costs import estimate, kinds_of_steps
from defectgen.training.data import Feeder, make_task, training_data
from defectgen.training.run import TrainSpec
from defectgen.training.trainer import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
NAMES = methods.names()
STEEL = Path(__file__).parents[1] / "examples/samples/steel"


@pytest.fixture(scope="module")
def source() -> ProductFolders:
    return ProductFolders(product="steel", normals=STEEL / "normals", defects=STEEL / "defects")


def first_batch(
    source: ProductFolders, name: str, preset: str, device: torch.device, **settings: object
) -> tuple[Method, Batch]:
    """A method with initial weights, which depend only on the seed, and its first batch."""
    config = methods.info(name).configure(preset, {key: str(value) for key, value in settings.items()})
    windows = training_data(name, read_catalog([source]), config)
    feeder = Feeder(windows, config.batch_size, 0, device, 2)
    batch = feeder.batch(0)
    feeder.close()
    return build(name, config, make_task(windows), device, 0), batch


def spec(source: ProductFolders, folder: Path, name: str, preset: str, **settings: object) -> TrainSpec:
    config = methods.info(name).configure(preset, {key: str(value) for key, value in settings.items()})
    return TrainSpec(name, "run", folder / "run", read_catalog([source]), (source,), config, device="cuda")


def test_batches_are_pinned_and_those_of_the_cpu(source: ProductFolders) -> None:
    config = methods.info("dt-gan").configure("tiny", {"batch_size": "2"})
    windows = training_data("dt-gan", read_catalog([source]), config)
    on_cpu, on_gpu = Feeder(windows, 2, 0, CPU, 1), Feeder(windows, 2, 0, CUDA, 1)
    waiting = on_gpu._draw(3)
    assert all(value.is_pinned() for value in vars(waiting).values() if value is not None)
    moved, same = on_gpu.batch(0), on_cpu.batch(0)
    for key, value in vars(same).items():
        if value is not None:
            assert getattr(moved, key).device.type == "cuda"
            torch.testing.assert_close(getattr(moved, key).cpu(), value, atol=0, rtol=0)
    on_cpu.close()
    on_gpu.close()


def test_networks_compute_in_bfloat16_and_keep_their_weights() -> None:
    network = torch.nn.Conv2d(3, 8, 3).to(CUDA)
    with mixed_precision(CUDA):
        made = network(torch.rand(1, 3, 16, 16, device=CUDA))
    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    assert made.dtype == (torch.bfloat16 if supported else torch.float32)
    made.float().square().mean().backward()
    assert network.weight.dtype == torch.float32
    assert network.weight.grad is not None
    assert network.weight.grad.dtype == torch.float32


def test_noise_of_a_seed_is_the_same_on_the_gpu_and_of_rows_that_of_the_cpu() -> None:
    x = torch.zeros(2, 3, 8, 8, device=CUDA)
    first, second, other = (Noise.seeded(seed, CUDA)(x) for seed in (5, 5, 6))
    assert first.device.type == "cuda"
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert abs(float(Noise.seeded(1, CUDA)(torch.zeros(4, 1, 128, 128, device=CUDA)).std()) - 1) < 0.02
    rows = [[torch_rng(1), torch_rng(2)] for _ in range(2)]
    assert torch.equal(Noise(rows[0])(x).cpu(), Noise(rows[1])(x.cpu()))


@pytest.mark.parametrize("preset", ["compact", "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_step_runs(name: str, preset: str, source: ProductFolders) -> None:
    """With the preset's networks and small batches, in mixed precision: the losses and all weights stay finite."""
    method, batch = first_batch(source, name, preset, CUDA, batch_size=4)
    for i, (_, step) in enumerate(kinds_of_steps(method.config).values()):
        before = {key: value.clone() for key, value in method.networks.state().items()}
        losses = method.training_step(batch, step, step / method.config.steps, torch_rng(0, 0, i))
        assert losses
        assert all(torch.isfinite(value).all() for value in losses.values()), losses
        after = method.networks.state()
        assert all(torch.isfinite(value.float()).all() for value in after.values())
        assert any(key not in before or not torch.equal(value, before[key]) for key, value in after.items())
    side = method.config.image_size
    x, y = torch.zeros(2, method.task.channels, side, side, device=CUDA), torch.ones(2, dtype=torch.long, device=CUDA)
    made = method.generate(GenerateBatch(x, y, [torch_rng(i) for i in range(2)]))
    assert made.x.device.type == "cuda"
    assert torch.isfinite(made.x).all()


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_samples_are_those_of_the_cpu(
    name: str, source: ProductFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In full precision, the first step; bfloat16 may be off by some percent."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found: dict[str, dict[str, float]] = {}
    samples: dict[str, Any] = {}
    for device in (CPU, CUDA):
        method, batch = first_batch(source, name, "tiny", device, batch_size=4)
        side = method.config.image_size
        x = torch.zeros(2, method.task.channels, side, side, device=device)
        y = torch.ones(2, dtype=torch.long, device=device)
        if not hasattr(method, "bank"):  # which the first step fills
            samples[device.type] = method.generate(GenerateBatch(x, y, [torch_rng(i) for i in range(2)])).x.cpu()
        with monkeypatch.context() as patch:
            of_type = torch.autocast(device.type, enabled=False)
            for module in (layers, __import__(type(method).__module__, fromlist=["mixed_precision"])):
                patch.setattr(module, "mixed_precision", lambda _device, of_type=of_type: of_type)
            losses = method.training_step(batch, method.config.steps - 1, 1.0, torch_rng(0, 0, 0))
        found[device.type] = {key: float(value) for key, value in losses.items()}
    if samples:
        assert float((samples["cuda"] - samples["cpu"]).abs().mean()) < 1 / 255
    assert found["cpu"].keys() == found["cuda"].keys()
    noisy = name == "dfmgan"  # whose noise is drawn on the device
    for key, value in found["cpu"].items():
        assert found["cuda"][key] == pytest.approx(value, rel=0.5 if noisy else 0.02, abs=0.2 if noisy else 0.01), key


def test_too_little_memory_ends_with_the_batch_size_to_try(source: ProductFolders, tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + (1 << 30)) / total))
    try:
        request = spec(source, tmp_path, "dt-gan", "compact", batch_size=64)
        for call in (train, estimate):
            with pytest.raises(OutOfMemoryError, match=r"cuda ran out of memory with --batch-size 64; .* 32"):
                call(request)
        assert (request.run / "index.html").read_text().count("out of memory")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_of_memory_is_near(
    name: str, source: ProductFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectgen.training.costs._MEASURED_SECONDS", 0.0)
    settings = {"steps": 64, **({"backbone_steps": 32} if len(methods.info(name).stages) > 1 else {})}
    request = spec(source, tmp_path, name, "compact", **settings)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    said = estimate(request)["estimated_memory_bytes"]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trained = train(request)
    assert all(np.isfinite(value) for value in trained.losses.values())
    assert torch.cuda.max_memory_allocated() == pytest.approx(said, rel=0.2)


def test_nccl_averages_gradients_and_joins_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank, but the same calls: with several, each needs a GPU."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for key, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr(ranks, "_session", ranks._Session(ranks.Place(0, 1, 0, 1)))
    group = ranks._group()
    assert "nccl" in str(group.get_backend(group.group.WORLD)) or "nccl" in str(group.group.WORLD._get_backend(CUDA))
    monkeypatch.setattr(ranks._session, "place", ranks.Place(0, 2, 0, 2))  # a half of two ranks: sums are its own
    try:
        weight = torch.nn.Parameter(torch.ones(3, device=CUDA))
        weight.grad = torch.tensor([2.0, 4.0, 6.0], device=CUDA)
        ranks.average([weight])
        assert weight.grad.tolist() == [1, 2, 3]
        assert float(ranks.mean(torch.tensor(5.0, device=CUDA))) == 2.5
        assert ranks.largest(1.0, 7.0) == [1, 7]
    finally:
        group.destroy_process_group()


def test_two_processes_share_a_gpu(tmp_path: Path) -> None:
    """Samples of two ranks are those of one, but for the last gray level."""
    made = [
        "-m",
        "defectgen",
        "synthesize",
        "-n",
        "6",
        "--model",
        "dt-gan-samples",
        "--normals",
        str(STEEL / "normals"),
    ]
    common = ["--device", "cuda", "--seed", "1", "--quiet"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for out, start in (("two", torchrun), ("one", [])):
        done = subprocess.run([sys.executable, *start, *made, *common, "--out", str(tmp_path / out)])  # noqa: PLW1510
        assert done.returncode == 0
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one/masks").rglob("*.png"))
    assert len(names) == 6
    same, _, missing = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)
    assert missing == []
    assert len(same) >= 4
