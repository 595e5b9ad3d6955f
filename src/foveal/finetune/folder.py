"""The folder of a fine-tuning run: its settings, and who may write in it.

RUN/finetune.json, metrics.jsonl, checkpoints/, and at the end model/ and head/.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from foveal.errors import RunError
from foveal.files import write_atomically
from foveal.pretrain.run import METRICS, differences
from foveal.pretrain.run_files import LOCK, MetricsFile, locked

SETTINGS, HEAD = "finetune.json", "head"
_STAGING = f".{SETTINGS}.tmp"


class FinetuneFolder:
    """A run folder opened for writing by this process alone.

    Args:
        path: the folder.
        settings: all that decides the numbers, as plain values.

    Raises:
        RunError: the folder holds something else, another run (the differing settings are named), or is in use.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.metrics = MetricsFile(path / METRICS)
        check_out(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = locked(path)
        except OSError as error:
            raise RunError(f"cannot write in {path}: {error}; choose another place") from error
        try:
            _claim(path / SETTINGS, json.loads(json.dumps(settings)))
        except RunError:
            self._lock.close()
            raise

    def close(self) -> None:
        """Close the files and let another process write."""
        self.metrics.close()
        self._lock.close()


def check_out(path: Path) -> None:
    """Refuse, before long work, a place where something other than a fine-tuning run is."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another place")
    found = {each.name for each in path.iterdir()} if path.is_dir() else set()
    if SETTINGS not in found and found - {LOCK, _STAGING}:
        raise RunError(f"{path} is not empty and not a fine-tuning run; choose another place")


def _claim(stored: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings down, or compare them with those that are there."""
    try:
        if not stored.is_file():
            write_atomically(stored, json.dumps(settings, indent=1) + "\n")
            return
        before = json.loads(stored.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{stored} cannot be written or read: {error}; choose another place for the run") from error
    if changed := differences(before, settings):
        named = "; ".join(f"{key} was {_short(was)}, is {_short(now)}" for key, (was, now) in changed.items())
        raise RunError(f"{stored.parent} holds another run: {named}. Use its settings to go on, or another place")


def _short(value: object) -> object:
    """Return a hash by its first digits, and anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
