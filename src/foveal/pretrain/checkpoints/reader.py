"""Training checkpoints: safetensors and JSON under a sha256 manifest, complete or not there at all.

A checkpoint is a folder `step_00001250` of
- `STEM.safetensors` for each group of tensors; of a run in four processes `STEM-00000-of-00004.safetensors` and so on,
  each with the parts that one process wrote;
- `state.json`, plain values;
- `manifest.json`, written last: of every file bytes and sha256, of every tensor shape, type and pieces. A piece is
  [number of its process, offset, shape]. The manifest holds its own sha256.

What n processes have written any other number reads: a tensor, or any part of one, is put together from the pieces.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from foveal.errors import CheckpointError
from foveal.files import sha256_of
from foveal.pretrain.checkpoints.pieces import Region, as_laid_out, assemble, region_of
from foveal.pretrain.processes.parallel import ALONE, World

MANIFEST, STATE = "manifest.json", "state.json"
FORMAT = 1
PREFIX = "step_"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest is intact; `find_damage` says whether its files are.

    Attributes:
        path: its folder.
        step: number of finished steps.
        num_processes: how many have written it.
        files: name -> bytes and sha256.
        tensors: file stem -> name -> shape, dtype and pieces.
    """

    path: Path
    step: int
    num_processes: int
    files: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        return sum(entry["bytes"] for entry in self.files.values())

    def state(self) -> dict[str, Any]:
        """Return the plain values, and the step."""
        return json.loads((self.path / STATE).read_text())

    def read(self, stem: str, *, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Read the tensors of a stem, each whole or, where `like` has one of its shape, the part that `like` asks for.

        Args:
            stem: of the files.
            like: name -> tensor whose layout is wanted; a DTensor gives a DTensor, of which only the shard is read.

        Raises:
            CheckpointError: the pieces cannot be read or leave a gap.
        """
        like = like or {}
        with ExitStack() as stack:
            opened: dict[int, Any] = {}

            def file_of(rank: int) -> Any:
                if rank not in opened:
                    path = self.path / file_name(stem, rank=rank, size=self.num_processes)
                    opened[rank] = stack.enter_context(safetensors.safe_open(path, framework="pt"))
                return opened[rank]

            def read_slices(rank: int, name: str, slices: tuple[slice, ...]) -> Tensor:
                return file_of(rank).get_slice(name)[slices] if slices else file_of(rank).get_tensor(name)

            named = {}
            try:
                for name, entry in self.tensors[stem].items():
                    whole = Region((0,) * len(entry["shape"]), tuple(entry["shape"]))
                    model = like.get(name)
                    if model is None or tuple(model.shape) != whole.shape:
                        model = torch.empty(whole.shape, device="meta")
                    pieces = (
                        (Region(tuple(offset), tuple(shape)), partial(read_slices, rank, name))
                        for rank, offset, shape in entry["pieces"]
                    )
                    part = assemble(region_of(model), pieces, dtype=getattr(torch, entry["dtype"]))
                    named[name] = as_laid_out(part, model)
            except (OSError, safetensors.SafetensorError, CheckpointError) as error:
                raise CheckpointError(f"{self.path}: {stem}/{name} cannot be read: {error}") from error
            return named


def checkpoint_path(folder: Path, *, step: int) -> Path:
    """Return where the checkpoint of a step is, below a run's checkpoint folder."""
    return folder / f"{PREFIX}{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted(
        path for path in folder.glob(f"{PREFIX}*") if path.is_dir() and path.name.removeprefix(PREFIX).isdigit()
    )


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the manifest of a checkpoint.

    Raises:
        CheckpointError: it is of another format.
        OSError, ValueError: it is missing or damaged.
    """
    manifest = json.loads((path / MANIFEST).read_text())
    if not isinstance(manifest, dict) or "content" not in manifest:
        raise ValueError(f"{MANIFEST} is not one of a foveal checkpoint")
    content = manifest["content"]
    if sha256_of_content(content) != manifest.get("sha256"):
        raise ValueError(f"{MANIFEST} does not have the sha256 that it says")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}, this version of foveal reads {FORMAT}; continue the run with the "
            "version that wrote it, or start a new one"
        )
    return Checkpoint(path, content["step"], content["processes"], content["files"], content["tensors"])


def find_damage(path: Path, *, sizes_only: bool = False, world: World = ALONE) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file is as its manifest says.

    Several processes share the reading and come to one answer. `sizes_only` leaves the reading out: what is cut off is
    found, and not what is changed.

    Raises:
        CheckpointError: it is of another format.
    """
    problem = None
    try:
        files = open_checkpoint(path).files
        for name in sorted(files)[world.rank :: world.size]:
            size, wanted = (path / name).stat().st_size, files[name]
            if size != wanted["bytes"] or not (sizes_only or sha256_of(path / name) == wanted["sha256"]):
                problem = f"{name} is damaged"
                break
    except (OSError, ValueError) as error:
        problem = f"its manifest or a file cannot be read ({error})"
    return next((found for found in world.gather(problem) if found is not None), None)


def newest_intact(folder: Path, *, among: range | None = None, world: World = ALONE) -> Checkpoint | None:
    """Return the newest intact checkpoint; None when the run has none yet.

    A damaged newest checkpoint is named in a warning and the one before it is used. `among` leaves those of other
    steps out. All processes come to the same answer.

    Raises:
        CheckpointError: there are checkpoints and none is intact, or the newest is of another format.
    """
    problems = []
    names = [p.name for p in list_checkpoints(folder) if among is None or int(p.name.removeprefix(PREFIX)) in among]
    for name in reversed(world.gather(names)[0]):
        problem = find_damage(folder / name, world=world)
        if problem is None:
            return open_checkpoint(folder / name)
        problems.append(f"{name}: {problem}")
        logger.warning("checkpoint %s is not used: %s", folder / name, problem)
    if problems:
        raise CheckpointError(
            f"no intact checkpoint in {folder}: {'; '.join(problems)}; restore one or start a new run"
        )
    return None


def file_name(stem: str, *, rank: int, size: int) -> str:
    """Return the name of the file in which one of `size` processes has written its parts of a stem."""
    return f"{stem}.safetensors" if size == 1 else f"{stem}-{rank:05d}-of-{size:05d}.safetensors"


def sha256_of_content(content: Mapping[str, Any]) -> str:
    """Return the sha256 under which a manifest vouches for itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
