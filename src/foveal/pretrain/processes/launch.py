"""Joining the processes of a run, and noticing that one of them is gone.

`torchrun` (or a batch system) starts the same command several times and says in the environment which is which. Each
process beats once a second in a store that is common to all. One that fails leaves its message there, one that is
killed stops beating; either ends the others within half a minute, whatever they are waiting for.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from foveal.errors import FovealError, RunError
from foveal.pretrain.processes.parallel import World
from foveal.signals import caught_signals

_JOIN_S = 600.0  # for all processes to start; imports are slow on a busy file server
_BEAT_S = 1.0
_SILENT_S = 18.0  # after so long without a beat a process is taken for lost
_PATIENCE_S = 4 * _BEAT_S  # for the others to tell why a message to them failed, or to read why this one ends
_GRACE_S = 9.0  # for the main thread to end in good order, once another process is known to be gone
_FAILED = "failed"


@contextmanager
def joined(*, gpus: bool = False, canonical: bool = False, timeout_s: float = 1800.0) -> Iterator[World]:
    """Join the processes that the environment tells of: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Without them, or with WORLD_SIZE=1, the run is this process alone. The processes talk over gloo, and those on GPUs
    over NCCL besides. An error in one of them ends all: it is raised as it is where it began, and elsewhere as a
    RunError with its message.

    Args:
        gpus: whether each process has a GPU, the one of its LOCAL_RANK, which becomes the current device.
        canonical: see `World`.
        timeout_s: how long one process waits for a message of another that is alive.

    Raises:
        RunError: the environment is incomplete, a process has no GPU, the processes do not find each other, or one
            failed or was lost.
    """
    size = _number("WORLD_SIZE", default=1)
    if size == 1:
        yield World(canonical=canonical)
        return
    rank, local_rank = _number("RANK"), _number("LOCAL_RANK")
    if gpus:
        found = torch.cuda.device_count()
        if local_rank >= found:
            raise RunError(
                f"process {rank} of {size} is number {local_rank} on its computer, which has {found} GPUs "
                "(counted from 0); start no more processes on a computer than it has GPUs, or use device=cpu"
            )
        torch.cuda.set_device(local_rank)
    try:
        watch = _Watch(_store(rank=rank, serves=True), rank=rank, size=size)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=dist.PrefixStore("group", _store(rank=rank)),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"process {rank} of {size} did not find the others: {error}; check MASTER_ADDR, MASTER_PORT and the network"
        ) from error
    try:
        yield World(rank=rank, size=size, local_rank=local_rank, group=dist.group.WORLD, canonical=canonical)
        dist.barrier()  # nobody stops beating before all are through
    except BaseException as error:
        # Where another process is gone, what fails here is a message to it, a moment before its end can be known.
        with caught_signals():  # torchrun signals those that are left, a moment before they know why
            reason = watch.reason() if _is_of_a_message(error) else None
            said = error if isinstance(error, FovealError) else repr(error)
            watch.tell(reason or f"process {rank} of {size} stopped: {said}")
        if reason is None:
            raise
        raise RunError(reason) from error
    finally:
        watch.stop()  # what the others do now is no longer of interest
        if not gpus:  # NCCL would wait for messages of processes that are gone
            dist.destroy_process_group()


def _is_of_a_message(error: BaseException) -> bool:
    """Tell whether a message to another process failed; gloo says so by a plain RuntimeError that names its file."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def check_alike(settings: Mapping[str, Any], world: World) -> None:
    """RunError where a process was started with other settings than the first: plain values by name."""
    first, *others = world.gather(dict(settings))
    for rank, other in enumerate(others, start=1):
        differing = [name for name in first.keys() | other.keys() if first.get(name) != other.get(name)]
        if differing:
            raise RunError(
                f"process {rank} differs from process 0 in {', '.join(sorted(differing))}; give all processes the same "
                "command, and the same files under the same names"
            )


class _Watch:
    """Beats for this process, listens to the next one's beat, and ends this process when another one is gone."""

    def __init__(self, store: dist.Store, *, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._found: str | None = None
        self._heard = time.monotonic()  # when the store answered last
        self._over = threading.Event()
        self._store.add(f"beat/{rank}", 1)
        for body in (self._beat, self._judge):
            threading.Thread(target=body, name=f"foveal{body.__name__}", daemon=True).start()

    def stop(self) -> None:
        """End the threads."""
        self._over.set()

    def tell(self, message: str) -> None:
        """Leave a message for the others, unless one is there already, and stay until they have read it."""
        with suppress(RuntimeError):  # the store went with its process, and that tells them too
            self._store.compare_set(_FAILED, "", message)
            self._store.add("told", 1)
            end = time.monotonic() + _PATIENCE_S
            while self._rank == 0 and self._store.add("told", 0) < self._size and time.monotonic() < end:
                time.sleep(_BEAT_S / 10)  # the store may be in this process

    def reason(self) -> str | None:
        """Return why another process is gone; None when after a while all seem to be well."""
        try:
            before, end = self._beats(), time.monotonic() + _PATIENCE_S
            while not self._store.check([_FAILED]) and time.monotonic() < end:
                time.sleep(_BEAT_S / 10)
            if self._store.check([_FAILED]):
                return self._store.get(_FAILED).decode()
            silent = [n for n, beat in enumerate(self._beats()) if beat == before[n] and n != self._rank]
        except RuntimeError:
            return self._found or self._lost_store()
        return self._lost(silent[0]) if silent else None

    def _beats(self) -> list[int]:
        return [self._store.add(f"beat/{rank}", 0) for rank in range(self._size)]

    def _beat(self) -> None:
        following, last, since = (self._rank + 1) % self._size, 0, time.monotonic()
        while not self._over.wait(_BEAT_S):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                beat = self._store.add(f"beat/{following}", 0)
                if self._store.check([_FAILED]):
                    self._found = self._store.get(_FAILED).decode()
                    return
            except RuntimeError:
                self._found = self._lost_store()
                return
            self._heard = time.monotonic()
            if beat != last:
                last, since = beat, self._heard
            elif last and self._heard - since > _SILENT_S:
                self.tell(self._lost(following))

    def _judge(self) -> None:
        """End the process when another is gone and the main thread does not come back from waiting for it."""
        while not self._over.wait(_BEAT_S):
            if self._found is None and time.monotonic() - self._heard > _SILENT_S:
                self._found = self._lost_store()
            if self._found is not None and not self._over.wait(_GRACE_S):
                sys.stderr.write(f"error: {self._found}\n")
                sys.stderr.flush()
                os._exit(2)

    def _lost(self, rank: int) -> str:
        return (
            f"process {rank} of {self._size} was lost (killed, out of memory, or its computer is gone); "
            "run the same command again to continue from the last checkpoint"
        )

    def _lost_store(self) -> str:
        return (
            f"process {self._rank} of {self._size} lost the one that holds the run together (rank 0 or its torchrun); "
            "run the same command again to continue from the last checkpoint"
        )


def _store(*, rank: int, serves: bool = False) -> dist.Store:
    """Connect to the store at MASTER_ADDR and MASTER_PORT; torchrun holds it where it says so, else rank 0."""
    host = os.environ.get("MASTER_ADDR")
    if not host:
        raise RunError("WORLD_SIZE is set but MASTER_ADDR is not; start the processes with torchrun, or set both")
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        host,
        _number("MASTER_PORT"),
        is_master=serves and rank == 0 and not held,
        timeout=timedelta(seconds=_JOIN_S),
        wait_for_workers=False,
    )
    return dist.PrefixStore(f"foveal/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _number(name: str, *, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise RunError(f"the environment says {name}='{text}', expected a number; start the processes with torchrun")
    return int(text)
