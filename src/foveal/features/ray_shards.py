"""The shards of a feature store on a Ray cluster: each a task, tried again where a worker died.

Images, model and store must lie on disks that every node sees under the same paths. What a task does is the same
function that one process runs in a loop.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foveal
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.extraction import Extraction, bad_images, finish, join_extraction
from foveal.features.ray_tasks import ray_cluster, run_tasks
from foveal.features.stamp import StoreSettings
from foveal.features.store import ENGINE, read_done
from foveal.images.imageset import ImageSet


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
    with ray_cluster(address) as ray:
        _run_tasks(ray, extraction, job, num_cpus=num_cpus, max_bad_share=max_bad_share, progress=progress)
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
    task = functools.partial(extract_one, str(store), job, num_threads=max(1, num_cpus), max_bad_share=max_bad_share)
    for shard in run_tasks(ray, task, missing, num_cpus=num_cpus, num_gpus=num_gpus):
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
