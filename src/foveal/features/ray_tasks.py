"""Shards as tasks on a Ray cluster: submitted, tried again where a worker died, their errors ours."""

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from foveal.errors import FovealError

MAX_RETRIES = 5


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Give the package ray, connected; what was started here is stopped afterwards.

    Args:
        address: of a running cluster; None takes RAY_ADDRESS, else starts Ray on this machine.

    Raises:
        FovealError: Ray is missing, or the cluster cannot be reached.
    """
    ray = import_ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def run_tasks(
    ray: Any, task: Callable[[int], None], shards: Sequence[int], *, num_cpus: int = 1, num_gpus: int = 0
) -> Iterator[int]:
    """Run a function for each shard on the cluster, and yield the shards as they finish.

    Args:
        ray: see `ray_cluster`.
        task: called with the number of a shard; can be pickled.
        shards: their numbers.
        num_cpus: reserved for each task.
        num_gpus: likewise.

    Raises:
        FovealError: an error of a shard, or a worker that died too often.
    """
    remote = ray.remote(_call).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=MAX_RETRIES)
    running = {remote.remote(task, shard): shard for shard in shards}
    try:
        while running:
            (reference, *_), _ = ray.wait(list(running))
            shard = running.pop(reference)
            _result(ray, reference, shard)
            yield shard
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _call(task: Callable[[int], None], shard: int) -> None:
    task(shard)


def _result(ray: Any, reference: Any, shard: int) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FovealError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise FovealError(
            f"shard {shard} failed on Ray after {MAX_RETRIES} more tries ({type(error).__name__}: {error}); the "
            "finished shards stay; see the logs of the cluster and run the same command again"
        ) from error


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start reports to nobody
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise FovealError(
            f"no Ray cluster at {address} ({error}); start one with `ray start`, or leave it out"
        ) from error


def import_ray() -> Any:
    """Return the package ray; FovealError says how to install it."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise FovealError(f"Ray cannot be imported ({error}); install foveal[ray]") from error
