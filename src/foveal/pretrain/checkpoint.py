"""Training checkpoints: safetensors and JSON under a sha256 manifest, complete or not there at all."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from foveal.backbone.weights import load_tensors
from foveal.errors import CheckpointError, WeightsError
from foveal.files import publish, sha256_of

MANIFEST, STATE = "manifest.json", "state.json"
_PREFIX = "step_"

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, *, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Write one checkpoint and remove the oldest beyond `keep`.

    Everything goes to a temporary folder, is fsynced and hashed; the manifest comes last and one rename publishes it.
    A process killed at any moment leaves either the whole checkpoint or an ignored temporary folder.

    Args:
        folder: the run's checkpoint folder.
        step: number of finished steps.
        tensors: file stem -> name -> tensor.
        state: plain values, written as JSON.
        keep: how many checkpoints stay.

    Raises:
        CheckpointError: the checkpoint cannot be written; earlier ones are untouched.
    """
    final = folder / f"{_PREFIX}{step:08d}"
    staging = folder / f".{final.name}.tmp"
    try:
        for torn in folder.glob(f".{_PREFIX}*.tmp"):
            shutil.rmtree(torn, ignore_errors=True)
        staging.mkdir(parents=True)
        for stem, named in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in named.items()}, staging / f"{stem}.safetensors")
        (staging / STATE).write_text(json.dumps({"step": step, **state}))
        files = {
            path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(staging.iterdir())
        }
        (staging / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1))
        publish(staging, final)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        needed = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
        free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        raise CheckpointError(
            f"cannot write checkpoint {final}: {error}; it needs {needed:,} bytes, {free:,} are free. "
            "Earlier checkpoints are untouched: make room and run the same command again"
        ) from error
    # A later checkpoint can only be a damaged one that the run went back from: it must not push out a good one.
    for old in [path for path in list_checkpoints(folder) if path.name <= final.name][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    return sorted(
        path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and path.name.removeprefix(_PREFIX).isdigit()
    )


def check_checkpoint(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file is as its manifest says."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        for name, entry in files.items():
            if (path / name).stat().st_size != entry["bytes"] or sha256_of(path / name) != entry["sha256"]:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest or a file cannot be read ({error})"
    return None


def load_newest(
    folder: Path, *, among: range | None = None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Read the newest intact checkpoint: (tensors by file stem and name, state); None when the run has none yet.

    A damaged newest checkpoint is named in a warning and the one before it is used. `among` leaves those of other
    steps out.

    Raises:
        CheckpointError: there are checkpoints and none is intact.
    """
    found = [p for p in list_checkpoints(folder) if among is None or int(p.name.removeprefix(_PREFIX)) in among]
    problems = []
    for path in reversed(found):
        problem = check_checkpoint(path)
        if problem is None:
            try:
                tensors = {file.stem: load_tensors(file) for file in path.glob("*.safetensors")}
                return tensors, json.loads((path / STATE).read_text())
            except (WeightsError, ValueError) as error:
                problem = str(error)
        problems.append(f"{path.name}: {problem}")
        logger.warning("checkpoint %s is not used: %s", path, problem)
    if problems:
        raise CheckpointError(
            f"no intact checkpoint in {folder}: {'; '.join(problems)}; restore one or start a new run"
        )
    return None
