"""The shards of a feature store on a Ray cluster: each a task, tried again where a worker died.

Images, model and store must lie on disks that every node sees under the same paths. What a task does is the same
function that one process runs in a loop.
"""

import functools
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foveal
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.extraction import Extraction, bad_images, finish, join_extraction
from foveal.features.stamp import StoreSettings
from foveal.features.store import ENGINE, read_done
from foveal.images.imageset import ImageSet

MAX_RETRIES = 5


@dataclass(frozen=True)
class Job:
    """What a worker needs to open the same extraction.

    Attributes:
        images: the source, as `ImageSet.open` takes it; absolute.
        model: what `foveal.load` takes; a path is absolute.
        load_options: further arguments of `foveal.load`.
        settings: of the store.
    """

    images: str
    model: str
    settings: StoreSettings
    load_options: tuple[tuple[str, Any], ...] = ()


def run_on_ray(
    extraction: Extraction,
    job: Job,
    *,
    address: str | None = None,
    num_cpus: int = 1,
    max_bad_share: float = 0.01,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Extract the missing shards of a store on Ray, and write its summary.

    Args:
        extraction: made by `open_extraction` in this process, which has written the card and fitted the PCA.
        job: how workers open the same.
        address: of a running cluster; None takes RAY_ADDRESS, else starts Ray on this machine and stops it afterwards.
        num_cpus: reserved for each task, and its threads; a model on a GPU reserves one GPU besides.
        max_bad_share: see `Extraction.run`.
        progress: called with (images done, images in all).

    Returns:
        The summary.

    Raises:
        FovealError: Ray is missing, the cluster cannot be reached, a worker died too often, or an error of a shard.
    """
    ray = import_ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        _run_tasks(ray, extraction, job, num_cpus=num_cpus, max_bad_share=max_bad_share, progress=progress)
    finally:
        if started:
            ray.shutdown()
    return finish(extraction.store)


def _run_tasks(
    ray: Any, extraction: Extraction, job: Job, *, num_cpus: int, max_bad_share: float, progress: Progress | None
) -> None:
    card, store = extraction.card, extraction.store
    extraction.reopen(range(card.num_shards))
    bad = bad_images(store, card)
    extraction.check_bad(bad, max_bad_share)
    missing = extraction.missing()
    num_done = card.num_images - sum(len(card.rows_of(shard)) for shard in missing)
    num_gpus = int(extraction.model.engine.description["device"] == "cuda")
    task = ray.remote(extract_one).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=MAX_RETRIES)
    running = {
        task.remote(str(store), job, shard, num_threads=max(1, num_cpus), max_bad_share=max_bad_share): shard
        for shard in missing
    }
    try:
        while running:
            (reference, *_), _ = ray.wait(list(running))
            shard = running.pop(reference)
            _result(ray, reference, shard)
            done = read_done(store, shard)
            if done is None:
                raise FovealError(
                    f"a worker finished shard {shard}, and it is not in {store}; put the store on a disk that every "
                    "node sees under this path"
                )
            num_done += len(card.rows_of(shard))
            bad.update(done["bad"])
            extraction.check_bad(bad, max_bad_share)
            if progress:
                progress(num_done, card.num_images)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def extract_one(store: str, job: Job, shard: int, *, num_threads: int, max_bad_share: float) -> None:
    """Extract one shard in a worker, which keeps the model for its next one."""
    _opened(store, job).extract_shard(shard, num_threads=num_threads, max_bad_share=max_bad_share)


@functools.lru_cache(maxsize=1)
def _opened(store: str, job: Job) -> Extraction:
    model, images = foveal.load(job.model, **dict(job.load_options)), ImageSet.open(job.images)
    settings = job.settings
    model = model.settle(
        images, layers=settings.layers, size=settings.size, fit=settings.fit, folder=Path(store) / ENGINE
    )
    return join_extraction(Path(store), model, images, job.settings)


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
