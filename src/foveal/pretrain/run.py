"""The run folder: recipe, metrics, ledger, checkpoints, model; and who may write in it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import ValidationError

from foveal.errors import RunError
from foveal.files import write_atomically
from foveal.pretrain.recipe import Normalise, Recipe, dump_recipe
from foveal.pretrain.run_files import LOCK, MetricsFile, locked, read_lines

RECIPE, METRICS, LEDGER, CHECKPOINTS, MODEL = "recipe.yaml", "metrics.jsonl", "bad_images.jsonl", "checkpoints", "model"
REPLAY = "replay"
JUDGEMENTS = "gate.json"
# Metrics that measure time: the others are functions of the recipe, its images and the step.
TIMINGS = frozenset({"images_per_s", "data_wait"})
STUDENTS = "students"  # model folders of a distillation's further students
# Written before the recipe, and all that is there when a process is killed at its very start.
_RECIPE_STAGING = f".{RECIPE}.tmp"
# What may change when a run is continued: nothing that the numbers depend on.
FREE_KEYS = {
    "out",
    "device",
    "num_workers",
    "max_bad_share",
    "log_every_steps",
    "checkpoints",
    "knn",
    "health",
    "loggers",
    "hardware",
    "parallel",
}


# What may not change even on purpose, and why; all of a section, but for the exceptions.
_TENSORS = "the checkpoints hold the tensors of that network"
_BEGUN = "the run has begun with it"
_FIXED = {
    "backbone": _TENSORS,
    "heads": _TENSORS,
    "distill": _TENSORS,
    "lora": _TENSORS,
    "gram": _TENSORS,
    "start": _BEGUN,
    "gate": _BEGUN,
}
_NOT_FIXED = {"backbone.drop_path_rate"}


class RunFolder:
    """A run folder opened for writing by this process alone, or with `writes` off known by its path only.

    Args:
        recipe: of the run; `recipe.out` is the folder.
        images_hash: of the image set.
        writes: whether this process writes in it.
        allowed_changes: keys of the recipe, or "images", whose change on continuing is meant. The recipe before is kept
            as `recipe.1.yaml` and so on.

    Raises:
        RunError: the folder holds something else, another run (the differing settings are named), or is in use.
    """

    def __init__(
        self, recipe: Recipe, *, images_hash: str, writes: bool = True, allowed_changes: Collection[str] = ()
    ) -> None:
        self.path = Path(recipe.out)
        self._metrics = MetricsFile(self.path / METRICS)
        self._lock: IO[str] | None = None
        if writes:
            self._claim(recipe, images_hash, allowed_changes)

    def _claim(self, recipe: Recipe, images_hash: str, allowed_changes: Collection[str]) -> None:
        stored = self.path / RECIPE
        try:
            found = [path.name for path in self.path.iterdir()] if self.path.exists() else []
            if RECIPE not in found and set(found) - {LOCK, _RECIPE_STAGING}:
                raise RunError(f"{self.path} is not empty and not a run; choose another out=")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock = locked(self.path)
        except OSError as error:
            raise RunError(f"cannot write in {self.path}: {error}; choose another out=") from error
        try:
            if stored.is_file():
                _check_same(stored, recipe, images_hash, allowed_changes)
            write_atomically(stored, f"# images: {images_hash}\n{dump_recipe(recipe)}")
        except OSError as error:
            lock.close()
            raise RunError(f"cannot write in {self.path}: {error}; make room or choose another out=") from error
        except RunError:
            lock.close()
            raise

    def keep_metrics_before(self, step: int) -> None:
        """Drop metrics of steps that will be run again, and open the file for appending."""
        self._metrics.open(step)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line of metrics; see `MetricsFile.log`."""
        self._metrics.log(line)

    def sync_metrics(self) -> None:
        """Flush the metrics so far to the disk; see `MetricsFile.sync`."""
        self._metrics.sync()

    def close(self) -> None:
        """Close the files and let another process write."""
        self._metrics.close()
        if self._lock is not None:
            self._lock.close()


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, one dictionary a line; a last line cut off by a crash is left out."""
    return read_lines(Path(run) / METRICS)


def stored_normalise(recipe: Recipe) -> Normalise | None:
    """Return the channel statistics that an earlier start of this run has measured; None where it is new."""
    try:
        found = Normalise.model_validate((stored_values(recipe) or {})["normalise"])
    except (KeyError, ValidationError):
        return None  # no run, or one that RunFolder will refuse
    return found if found.mean is not None and len(found.mean) == recipe.backbone.channels else None


def stored_values(recipe: Recipe) -> dict[str, Any] | None:
    """Return the stored settings of an earlier start of this run; None where it is new, or not a run at all."""
    try:
        values = yaml.safe_load((Path(recipe.out) / RECIPE).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # RunFolder says what is wrong
    return values if isinstance(values, dict) else None


def settings_of(recipe: Recipe, *, images_hash: str) -> dict[str, Any]:
    """Return the settings of a run as plain values, with the hash of its images in the place of their path."""
    return recipe.model_dump(mode="json") | {"images": images_hash}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what has changed from one `settings_of` a run to the next, but for free keys: key -> [was, is]."""
    was, is_ = _flat(before), _flat(now)
    return {
        key: [was.get(key), is_.get(key)]
        for key in sorted(was.keys() | is_.keys())
        if was.get(key) != is_.get(key) and key.split(".")[0] not in FREE_KEYS
    }


def _check_same(stored: Path, recipe: Recipe, images_hash: str, allowed: Collection[str]) -> None:
    """Refuse changes that are not allowed; keep the stored recipe under a number where there are some that are."""
    text = stored.read_text(errors="replace")
    try:
        before = yaml.safe_load(text) | {"images": text.partition("\n")[0].removeprefix("# images: ")}
    except (yaml.YAMLError, TypeError) as error:
        raise RunError(f"{stored} is damaged; restore it or choose another out=") from error
    changed = differences(before, settings_of(recipe, images_hash=images_hash))
    refused = [
        _described_change(key, *values)
        for key, values in changed.items()
        if _why_fixed(key) or not _covers(allowed, key)
    ]
    if refused:
        raise RunError(
            f"{stored.parent} holds another run: {'; '.join(refused)}. Use its settings to continue it, "
            "--allow-change KEY for each that is meant, or another out="
        )
    if changed:
        number = 1 + len(list(stored.parent.glob(f"{stored.stem}.*{stored.suffix}")))
        write_atomically(stored.with_suffix(f".{number}{stored.suffix}"), text)


def _covers(keys: Collection[str], key: str) -> bool:
    """Return whether a key, or a section that it is in, is among `keys`."""
    return any(key == each or key.startswith(f"{each}.") for each in keys)


def _why_fixed(key: str) -> str | None:
    return None if key in _NOT_FIXED else _FIXED.get(key.split(".")[0])


def _described_change(key: str, was: Any, is_: Any) -> str:
    if key == "images":
        return f"the images are not the same (set {was[:12]}, now {is_[:12]})"
    why = _why_fixed(key)
    return f"{key} was {was!r}, is {is_!r}" + (f" (it cannot change: {why})" if why else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
