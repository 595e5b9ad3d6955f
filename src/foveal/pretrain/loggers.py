"""Where the numbers of a run go besides `metrics.jsonl`: TensorBoard, and wandb and MLflow where the recipe names them.

wandb and MLflow are imported here, and only for recipes that name them. Both take addresses and keys from their own
environment variables. A logger that fails is left out for the rest of the call, with a warning: the run goes on.
"""

import hashlib
import importlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from foveal.errors import RecipeError
from foveal.pretrain.recipe import Recipe, dump_recipe

TENSORBOARD = "tensorboard"
_PROJECT = "foveal"
_PARAMETERS_AT_ONCE = 100  # MLflow takes no more

logger = logging.getLogger(__name__)


class Logger(Protocol):
    """One place where numbers go."""

    errors: tuple[type[Exception], ...]  # that mean it does not work

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the finite numbers of a step."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class Loggers:
    """The loggers of a call: those that still work."""

    def __init__(self, named: Mapping[str, Logger]) -> None:
        self.named = dict(named)

    def log(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Pass the finite numbers of a step on; JSON and TensorBoard have no use for the others."""
        finite = {
            name: float(value)
            for name, value in numbers.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for name, one in list(self.named.items()):
            try:
                one.log(step, finite)
            except one.errors as error:
                self._leave_out(name, error)

    def close(self) -> None:
        """Close all."""
        for name, one in list(self.named.items()):
            try:
                one.close()
            except one.errors as error:
                self._leave_out(name, error)
        self.named = {}

    def _leave_out(self, name: str, error: Exception) -> None:
        del self.named[name]
        logger.warning("%s does not work and is left out: %s; metrics.jsonl has every number", name, error)


def open_loggers(recipe: Recipe, *, run: Path, step: int) -> Loggers:
    """Open the loggers of a run that goes on at `step`.

    Raises:
        RecipeError: a package that the recipe asks for is not installed.
    """
    named: dict[str, Logger] = {}
    try:
        named[TENSORBOARD] = _TensorBoard(run, step=step)
    except ModuleNotFoundError as error:
        logger.warning("no TensorBoard files are written: %s; install foveal's dependencies again", error)
    makers: dict[str, Callable[..., Logger]] = {"wandb": _Wandb, "mlflow": _MLflow}
    for name in recipe.loggers:
        named[name] = makers[name](recipe, run=run)
    return Loggers(named)


class _TensorBoard:
    """Event files in RUN/tensorboard. Steps that are run again replace those written before."""

    errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, run: Path, *, step: int) -> None:
        from tensorboardX import SummaryWriter

        # The names of its files end at seconds: a run that is continued within one would write over what it has.
        suffix = f".{time.time_ns()}"
        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=step, flush_secs=30, filename_suffix=suffix)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of the project foveal; it is found again when a run is continued."""

    def __init__(self, recipe: Recipe, *, run: Path) -> None:
        wandb = _imported("wandb", package="wandb")
        self.errors: tuple[type[Exception], ...] = (OSError, wandb.errors.Error)
        self._run = wandb.init(
            project=_PROJECT,
            name=run.resolve().name,
            id=_identity(recipe, run),
            resume="allow",
            dir=str(run),
            config=recipe.model_dump(mode="json"),
            settings=wandb.Settings(console="off"),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers) | {"step": step})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of the experiment foveal; it is found again, by a tag, when a run is continued."""

    def __init__(self, recipe: Recipe, *, run: Path) -> None:
        mlflow = _imported("mlflow", package="mlflow-skinny")
        self._entities = mlflow.entities
        self.errors: tuple[type[Exception], ...] = (OSError, mlflow.exceptions.MlflowException)
        try:
            self._client = mlflow.MlflowClient()
            experiment = self._client.get_experiment_by_name(_PROJECT)
            number = experiment.experiment_id if experiment else self._client.create_experiment(_PROJECT)
            identity = _identity(recipe, run)
            found = self._client.search_runs([number], filter_string=f"tags.foveal_run = '{identity}'")
            if found:
                self._id = found[0].info.run_id
                self._client.update_run(self._id, status="RUNNING")
                return
            tags = {"foveal_run": identity}
            self._id = self._client.create_run(number, run_name=run.resolve().name, tags=tags).info.run_id
            values = [self._entities.Param(key, str(value)) for key, value in _flat(recipe.model_dump(mode="json"))]
            for start in range(0, len(values), _PARAMETERS_AT_ONCE):
                self._client.log_batch(self._id, params=values[start : start + _PARAMETERS_AT_ONCE])
        except self.errors as error:
            raise RecipeError(
                f"loggers=[mlflow] does not work: {error}; set MLFLOW_TRACKING_URI, or leave mlflow out"
            ) from error

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _imported(name: str, *, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"loggers=[{name}] needs a package that is not installed; pip install {package}, or leave it out"
        ) from error


def _identity(recipe: Recipe, run: Path) -> str:
    """Tell a run from others: where it is and what it is."""
    return hashlib.sha256(f"{run.resolve()}\n{dump_recipe(recipe)}".encode()).hexdigest()[:16]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return flat
