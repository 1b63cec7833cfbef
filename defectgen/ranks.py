"""Several processes that share the work of one command, as `torchrun` starts them. Only rank 0 writes and prints.

A command gives each rank its share by index, and rank 0 puts the results together in the order of a single process.
They meet in the store that torchrun keeps: waiting there ends at a signal, or when another rank has ended. Only
training, which averages gradients, also starts a process group: `nccl` for CUDA, `gloo` for the CPU.

Nothing here imports PyTorch while a process is alone.
"""

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count as numbers
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from defectgen.errors import ExitCode, StoppedError, UsageError, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

_PIECE = 2**22  # bytes of a value in the store, which takes 8 MiB at most
_AHEAD = 4  # items that a rank hands over before rank 0 takes them
_FIRST_PAUSE, _LAST_PAUSE = 0.001, 0.05  # seconds between two looks into the store
_TIMEOUT = timedelta(minutes=30)  # of a collective: rank 0 may write checkpoints and previews meanwhile
_REASONS = 5.0  # seconds in which the other ranks leave theirs
_SILENT = 3.0  # seconds in which rank 0 should have told why another rank ends


@dataclass(frozen=True)
class Place:
    """Where this process is among the ranks, and among those of its machine."""

    index: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1


class PeerError(UserError):
    """Another rank has ended, or cannot be reached. `end` says why."""

    code = ExitCode.INTERNAL


@dataclass
class _Session:
    """The state of this process."""

    place: Place = Place()
    store: Any = None
    grouped: bool = False


_session = _Session()
_calls = numbers()  # the ranks do the same in the same order, so that a number names what they exchange


def start() -> None:
    """Take part as the rank that RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE name; alone if they name no other.

    Raises:
        UsageError: some of them are missing, or are no such numbers.
    """
    _session.place = of_environment()


def of_environment() -> Place:
    """The place that the environment names.

    Raises:
        UsageError: as `start`.
    """
    if (count := _number("WORLD_SIZE", "1", 1)) == 1:
        return Place()
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {count} in the environment, without {', '.join(missing)}: start it with torchrun, or unset "
            "WORLD_SIZE"
        )
    index, local = _number("RANK", "", 0), _number("LOCAL_RANK", "", 0)
    if index >= count:
        raise UsageError(f"RANK is {index}, but WORLD_SIZE {count}: start it with torchrun")
    return Place(index, count, local, on_machine())


def _number(name: str, default: str, least: int) -> int:
    text = os.environ.get(name) or default
    if not text.isdecimal() or int(text) < least:
        raise UsageError(f"{name} is {text!r} in the environment: it should be a number; start it with torchrun")
    return int(text)


def index() -> int:
    """The rank of this process, from 0."""
    return _session.place.index


def count() -> int:
    """The number of ranks."""
    return _session.place.count


def place() -> Place:
    """Where this process is."""
    return _session.place


def on_machine() -> int:
    """The number of ranks that share this machine's processors, by the environment."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(text) if text.isdecimal() and int(text) else 1


def is_main() -> bool:
    """Whether this is rank 0, which alone writes and prints."""
    return _session.place.index == 0


# --- Sharing out and gathering -----------------------------------------------------------------------------------


def mine(items: Sequence[T]) -> Sequence[T]:
    """This rank's share: each item whose position, modulo the number of ranks, is its own."""
    return items[_session.place.index :: _session.place.count]


def share(make: Callable[[], T]) -> T:
    """What `make` returns on rank 0; the others wait for it, however long it takes. It can be pickled.

    Raises:
        PeerError: rank 0 has ended.
    """
    if _session.place.count == 1:
        return make()
    if not is_main():
        return received()
    value = make()
    _put(f"share/{next(_calls)}", pickle.dumps(value))
    return value


def received() -> Any:
    """What rank 0 shares next, for another rank; as `share`."""
    return pickle.loads(_take(f"share/{next(_calls)}"))  # noqa: S301 (of our own ranks)


def gathered(items: Iterable[T]) -> Iterator[T]:
    """On rank 0, the items of all ranks in turn: the first of each, then the second of each. On the others none.

    The others hand theirs over, a few ahead. As with `mine`, a rank has as many items as the one before it, or one
    less. Items can be pickled.

    Raises:
        PeerError: another rank has ended.
    """
    if _session.place.count == 1:
        yield from items
        return
    call = f"items/{next(_calls)}"
    if is_main():
        own = iter(items)
        for number in numbers():
            for rank in range(_session.place.count):
                # As lists, of which an empty one is the end.
                one = [each for _, each in zip(range(1), own, strict=False)] if rank == 0 else None
                if one is None:
                    one = pickle.loads(_take(f"{call}/{rank}/{number}", keep=False))  # noqa: S301
                if not one:
                    return
                yield one[0]
    number = -1
    for number, item in enumerate(items):
        if number >= _AHEAD:
            _wait(f"{call}/{_session.place.index}/{number - _AHEAD}", there=False)
        _put(f"{call}/{_session.place.index}/{number}", pickle.dumps([item]))
    _put(f"{call}/{_session.place.index}/{number + 1}", pickle.dumps([]))


def _put(key: str, data: bytes) -> None:
    with _reached():
        pieces = range(0, len(data), _PIECE)
        for number, first in enumerate(pieces):
            _store().set(f"{key}/piece/{number}", data[first : first + _PIECE])
        _store().set(key, str(len(pieces)))


def _take(key: str, *, keep: bool = True) -> bytes:
    _wait(key, there=True)
    with _reached():
        keys = [f"{key}/piece/{number}" for number in range(int(_store().get(key)))]
        data = b"".join(map(_store().get, keys))
        for each in () if keep else (*keys, key):
            _store().delete_key(each)
    return data


def _wait(key: str, *, there: bool) -> None:
    """Wait until a key is in the store, or is not.

    Raises:
        PeerError: another rank has ended.
    """
    pause = _FIRST_PAUSE
    while True:
        with _reached():
            if _store().check([key]) == there:
                return
            ended = _store().check(["ended"])
        if ended:
            raise PeerError("another rank has ended")
        time.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE)


def _store() -> Any:
    if _session.store is None:
        from torch.distributed.rendezvous import rendezvous

        _session.store, _, _ = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
    return _session.store


@contextmanager
def _reached() -> Iterator[None]:
    """Within the block, an error of PyTorch's is that another rank, or the store, is gone."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerError(str(error).splitlines()[0]) from error


# --- Training ------------------------------------------------------------------------------------------------------


def largest(*values: float) -> list[float]:
    """The largest of each value over all ranks: what depends on the time or a signal is then the same on all."""
    if _session.place.count == 1:
        return list(values)
    import torch

    found = torch.tensor(values, dtype=torch.float64)
    _reduce(found, "MAX")
    return found.tolist()


def any_of(condition: bool) -> bool:
    """Whether it holds on any rank: where a batch decides what is trained, all ranks do the same."""
    return largest(float(condition))[0] > 0


def mean(value: "Tensor") -> "Tensor":
    """The mean of a tensor over all ranks."""
    if _session.place.count == 1:
        return value
    found = value.detach().clone()
    _reduce(found, "SUM")
    return found / _session.place.count


def joined(*tensors: "Tensor") -> list["Tensor"]:
    """The rows of all ranks, in their order. Their shapes are the same on all ranks."""
    if _session.place.count == 1:
        return list(tensors)
    import torch

    found = []
    for tensor in tensors:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(_session.place.count)]
        with _reached():
            _group().all_gather(parts, tensor.contiguous())
        found.append(torch.cat(parts))
    return found


def average(parameters: Sequence["nn.Parameter"]) -> None:
    """Replace the gradients by their means over all ranks. A gradient that a rank lacks is zero if others have it."""
    if _session.place.count == 1:
        return
    import torch

    own = [parameter.grad for parameter in parameters]
    known = torch.tensor([grad is not None for grad in own], dtype=torch.float32, device=parameters[0].device)
    flat = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, own, strict=True)]
    total = torch.cat([*(each.flatten() for each in flat), known])
    _reduce(total, "SUM")
    *means, known = (total / _session.place.count).split([*(each.numel() for each in flat), len(known)])
    there = [True] * len(flat) if all(grad is not None for grad in own) else (known > 0).tolist()
    for parameter, grad, values, is_there in zip(parameters, flat, means, there, strict=True):
        if is_there:
            parameter.grad = grad.copy_(values.view_as(grad))


def spread(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The tensors of rank 0, on all ranks; on the CPU."""
    if _session.place.count == 1:
        return dict(tensors)
    import torch

    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    shapes = share(lambda: {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()})
    found = own if is_main() else {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    with _reached():
        for tensor in found.values():
            _group().broadcast(tensor, src=0)
    return found


def _reduce(tensor: "Tensor", how: str) -> None:
    with _reached():
        group = _group()
        group.all_reduce(tensor, getattr(group.ReduceOp, how))


def _group() -> Any:
    """`torch.distributed` with a group of all ranks."""
    import torch

    dist: Any = torch.distributed
    if not _session.grouped:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo",
            store=dist.PrefixStore(f"group/{next(_calls)}", _store()),
            rank=_session.place.index,
            world_size=_session.place.count,
            timeout=_TIMEOUT,
        )
        _session.grouped = True
    return dist


# --- The end -------------------------------------------------------------------------------------------------------


def finish(code: int) -> int:
    """End without an error: wait for rank 0, and return its exit code."""
    code = share(lambda: code)
    if _session.grouped:
        _group().destroy_process_group()
        _session.grouped = False
    return code


def end(error: BaseException, code: int, message: str) -> str | None:
    """End with an error. Returns what this rank is to print, one line; None if another one tells it.

    Of several ranks, rank 0 tells what ended them, also if that was another rank. Another one does it itself if rank 0
    is busy; usually torchrun ends it before, since rank 0 has ended.
    """
    if _session.place.count == 1:
        return message
    own = not isinstance(error, PeerError | StoppedError | SystemExit)
    if _session.store is None and (is_main() or not own):
        return message if is_main() else None
    if is_main():
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun sends one as soon as a rank has ended
            signal.signal(number, signal.SIG_IGN)
    try:
        key = f"ended/{_session.place.index}"
        _put(key, pickle.dumps((int(code), message if own else "")))
        _store().set("ended", "")
        if own and is_main():
            return message
        if is_main():
            return _reason(error, message)
        if own:
            time.sleep(_SILENT)
            _store().set("told", "")
            return f"rank {_session.place.index}: {message}"
    except (PeerError, RuntimeError):  # the store is gone
        return message if is_main() else f"rank {_session.place.index}: {message}" if own else None
    return None


def _reason(error: BaseException, message: str) -> str | None:
    """What ended the ranks, for rank 0: an error of another one, or its silence, or a signal to all."""
    if _store().check(["told"]):
        return None
    notes: dict[int, str] = {}
    until = time.monotonic() + _REASONS
    while len(notes) < _session.place.count - 1 and time.monotonic() < until:
        for rank in set(range(1, _session.place.count)) - notes.keys():
            if _store().check([f"ended/{rank}"]):
                notes[rank] = pickle.loads(_take(f"ended/{rank}"))[1]  # noqa: S301
        if told := next((f"rank {rank}: {text}" for rank, text in notes.items() if text), None):
            return told
        time.sleep(_LAST_PAUSE)
    again = "run the same command with --resume to continue"
    if silent := sorted(set(range(1, _session.place.count)) - notes.keys()):
        who = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
        return f"{who} ended without a word: killed, or the machine is out of memory or gone; {again}"
    return message if not isinstance(error, PeerError) else f"stopped; {again}"


def leave(code: int) -> None:
    """After an error with a process group, whose other ranks may be gone: end at once, without waiting for them."""
    if _session.grouped and code:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        _exit(code)


def _exit(code: int) -> NoReturn:
    os._exit(code)
