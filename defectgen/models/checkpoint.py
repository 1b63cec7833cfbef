"""Tensors and their configuration in one safetensors file: written atomically, refused if a single bit differs.

safetensors does not detect flipped bits, so each file also contains a SHA-256 of its tensors and configuration.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from defectgen import files
from defectgen.errors import WeightsError

# Only one metadata key: safetensors writes several in any order, and equal models would differ in their bytes.
_KEY = "defectgen"


def pack(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bytes:
    """The bytes of a file of tensors of any shape, type and device, and a JSON-serializable configuration."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = json.dumps({"config": config, "sha256": _digest(on_cpu, config)}, ensure_ascii=False, sort_keys=True)
    return to_safetensors(on_cpu, metadata={_KEY: record})


def save(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write tensors and a configuration to `path`, as `pack` makes them.

    Raises:
        DiskFullError: the disk is full. An earlier file at `path` is unchanged.
    """
    # Not save_file, which reports a full disk by its own exception; Python raises an OSError.
    files.write(path, pack(tensors, config))


def load(path: Path, *keys: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors, onto the CPU, and the configuration that `save` wrote to `path`.

    Args:
        keys: what the configuration must have.

    Raises:
        WeightsError: the file is missing, truncated, damaged, not written by defectgen, or lacks one of `keys`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: truncated, damaged or not a safetensors file ({error}); copy it again, or train again"
        ) from error
    try:
        record = json.loads(metadata[_KEY])
        config, sha256 = record["config"], record["sha256"]
        digest = _digest(tensors, config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: nested too deeply
        raise WeightsError(
            f"{path}: not written by defectgen, or damaged: it has no valid configuration and sha256"
        ) from error
    if digest != sha256:
        raise WeightsError(f"{path}: damaged: its contents do not match its sha256; copy it again, or train again")
    missing = [key for key in keys if key not in config] if isinstance(config, dict) else ["configuration"]
    if missing:
        raise WeightsError(
            f"{path}: another kind of file of defectgen, such as a checkpoint in place of a model: it has no "
            f"{missing[0]}; name the right file"
        )
    # Cloned, since they may be views of the file, which may change later. Not before the check: cloning a boolean
    # turns any nonzero byte into 1.
    return {name: tensor.clone() for name, tensor in tensors.items()}, config


def _digest(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 of the configuration, and of the name, type, shape and bytes of each tensor, sorted by name."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
