"""Writing checkpoints: whole or not at all, and beside the training."""

import json
import logging
import math
import resource
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from foveal.errors import CheckpointError
from foveal.files import publish, sha256_of, sync
from foveal.pretrain.checkpoints.reader import (
    FORMAT,
    MANIFEST,
    PREFIX,
    STATE,
    checkpoint_path,
    file_name,
    list_checkpoints,
    sha256_of_content,
)
from foveal.pretrain.checkpoints.snapshot import Snapshot, take_snapshot
from foveal.pretrain.processes.parallel import ALONE, World

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread, so that training waits for a copy in memory and not for the disk.

    There is one copy, whose memory is used again, and one checkpoint at a time: a save waits for the one before. One
    that could not be written is made up for by the next one, for which training waits; only when that fails too, it is
    an error.

    It is used as a context: at its end it waits for the last checkpoint, except after a KeyboardInterrupt, when leaving
    at once is what was asked for.

    Args:
        folder: the run's checkpoint folder.
        keep, every_steps: see `write_checkpoint`.
        world: the processes; all make the same calls.
        then: called with each finished checkpoint, in the thread of rank 0.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        every_steps: int = 1,
        world: World = ALONE,
        then: Callable[[Path], None] | None = None,
    ) -> None:
        self._folder, self._world, self._then = folder, world, then
        self._keep, self._every_steps = keep, every_steps
        # The thread's messages must not get between those of training.
        group = None if world.group is None else dist.new_group(backend="gloo")
        self._thread_world = replace(world, group=group)
        self._snapshot: Snapshot | None = None
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception) and self._pending and (missed := self._pending.exception()):
            logger.warning("%s", missed)

    def save(self, step: int, *, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Copy the tensors and begin to write them; see `write_checkpoint`.

        Args:
            step: number of finished steps.
            tensors: file stem -> name -> tensor, plain or DTensor.
            state: plain values, written as JSON.

        Raises:
            FovealError: this checkpoint could not be written, and nor could the one before it.
        """
        missed = self._pending.exception() if self._pending else None
        self._snapshot = take_snapshot(tensors, step=step, state=state, world=self._world, into=self._snapshot)
        self._pending = Future()
        threading.Thread(target=self._write, args=(self._snapshot, self._pending), daemon=True).start()
        if missed:
            logger.warning("%s. Trying once more at step %d", missed, step)
            self.wait()

    @property
    def failed(self) -> bool:
        """Whether the newest checkpoint is known to have failed here; if so anywhere, all should save the next step."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is on the disk; raise what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write(self, snapshot: Snapshot, pending: "Future[None]") -> None:
        try:
            path = write_checkpoint(
                self._folder, snapshot, keep=self._keep, every_steps=self._every_steps, world=self._thread_world
            )
            if self._then and self._world.is_main:
                self._then(path)
        except Exception as error:  # whoever waits for it raises it
            pending.set_exception(error)
        else:
            pending.set_result(None)


def write_checkpoint(
    folder: Path, snapshot: Snapshot, *, keep: int, every_steps: int = 1, world: World = ALONE
) -> Path:
    """Write a snapshot as one checkpoint and remove those that are no longer kept.

    Everything goes to a temporary folder, is fsynced and hashed; the manifest comes last and one rename publishes it.
    A process killed at any moment leaves either the whole checkpoint or an ignored temporary folder.

    Args:
        folder: the run's checkpoint folder, on a disk that all processes share.
        snapshot: of this process.
        keep: how many regular checkpoints stay, those at multiples of `every_steps`; others stay while there are
            fewer, and the one written here, so that interruptions leave the guard as many ways back as it has without.
        every_steps: of the regular checkpoints.
        world: the processes; all call this, and all succeed or fail.

    Raises:
        CheckpointError: the checkpoint cannot be written; earlier ones are untouched.
    """
    final = checkpoint_path(folder, step=snapshot.step)
    staging = folder / f".{final.name}.tmp"
    needed = sum(world.gather(snapshot.num_bytes))
    try:
        _agreed(world, partial(_prepare, folder, staging, world))
        parts = _agreed(world, partial(_write_part, staging, snapshot, world))
        _agreed(world, partial(_publish, staging, final, snapshot, parts, world))
    except _NotWrittenError as error:
        if world.is_main:
            shutil.rmtree(staging, ignore_errors=True)
        free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
        raise CheckpointError(
            f"cannot write checkpoint {final}: {error}; it needs {needed:,} bytes, {free:,} are free{_limit()}. "
            "Earlier checkpoints are untouched: make room and run the same command again"
        ) from error
    if world.is_main:
        for old in _no_longer_kept(folder, final, keep=keep, every_steps=every_steps):
            shutil.rmtree(old, ignore_errors=True)
    return final


def _no_longer_kept(folder: Path, final: Path, *, keep: int, every_steps: int) -> list[Path]:
    # A later checkpoint can only be a damaged one that the run went back from: it must not push out a good one.
    there = [path for path in list_checkpoints(folder) if path.name <= final.name]
    regular = [path for path in there if int(path.name.removeprefix(PREFIX)) % every_steps == 0][-keep:]
    others = [path for path in there if path not in regular and path != final]
    return others[: max(0, len(others) + len({*regular, final}) - keep)]


def _agreed(world: World, action: Callable[[], Any]) -> list[Any]:
    """Do something in every process and return what each one got, by rank; _NotWrittenError if one of them failed."""
    value, problem = None, None
    try:
        value = action()
    except Exception as error:  # whatever it is, the other processes wait for an answer
        problem = str(error) or repr(error)
    answers = world.gather([value, problem])
    if problems := [problem for _, problem in answers if problem is not None]:
        raise _NotWrittenError(problems[0])
    return [value for value, _ in answers]


class _NotWrittenError(Exception):
    """Why one of the processes could not write; becomes a CheckpointError in all of them."""


def _prepare(folder: Path, staging: Path, world: World) -> None:
    if world.is_main:
        for torn in folder.glob(f".{PREFIX}*.tmp"):
            shutil.rmtree(torn, ignore_errors=True)
        staging.mkdir(parents=True)


def _write_part(staging: Path, snapshot: Snapshot, world: World) -> dict[str, Any]:
    """Write the files of this process; return what the manifest says of them, and where each tensor's part belongs."""
    files = {}
    for stem, named in snapshot.tensors.items():
        if named:
            path = staging / file_name(stem, rank=world.rank, size=world.size)
            save_file(named, path)
            sync(path)
            files[path.name] = _described(path)
    pieces = {
        stem: {name: [snapshot.offsets[stem][name], list(part.shape)] for name, part in named.items()}
        for stem, named in snapshot.tensors.items()
    }
    return {"files": files, "pieces": pieces}


def _publish(staging: Path, final: Path, snapshot: Snapshot, parts: list[Any], world: World) -> None:
    if not world.is_main:
        return
    (staging / STATE).write_text(json.dumps({"step": snapshot.step, **snapshot.state}))
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": snapshot.step,
        "processes": world.size,
        "files": {STATE: _described(staging / STATE)} | {n: e for part in parts for n, e in part["files"].items()},
        "tensors": {
            stem: {
                name: {
                    "shape": shape,
                    "dtype": dtype,
                    "pieces": [[r, *p["pieces"][stem][name]] for r, p in enumerate(parts) if name in p["pieces"][stem]],
                }
                for name, (shape, dtype) in named.items()
            }
            for stem, named in snapshot.layout.items()
        },
    }
    for stem, named in content["tensors"].items():
        for name, entry in named.items():
            found = sum(math.prod(shape) for _, _, shape in entry["pieces"])
            if found != math.prod(entry["shape"]):
                raise CheckpointError(f"the processes hold {found:,} elements of {stem}/{name} of {entry['shape']}")
    (staging / MANIFEST).write_text(json.dumps({"sha256": sha256_of_content(content), "content": content}))
    publish(staging, final)


def _limit() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return "" if soft == resource.RLIM_INFINITY else f", and no file may exceed {soft:,} bytes (ulimit -f)"


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
