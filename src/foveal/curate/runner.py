"""How the shards of a step are run: one after another, by processes of this machine, or as tasks on a Ray cluster.

What a shard does is the same function in each case, and its boundaries belong to the stage, so the result is the same
to the byte.
"""

import functools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from foveal.curate.stage import Stage
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.ray_tasks import ray_cluster, run_tasks

Task = Callable[[Path, int], None]


@dataclass(frozen=True)
class Runner:
    """Where the shards of a step run.

    Attributes:
        engine: "local" or "ray".
        num_workers: processes of this machine; 1 is this one.
        ray_address: of a cluster; None takes RAY_ADDRESS, else starts Ray on this machine.
        num_cpus: of each task on Ray, and its threads.
    """

    engine: Literal["local", "ray"] = "local"
    num_workers: int = 1
    ray_address: str | None = None
    num_cpus: int = 1

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.num_cpus < 1:
            raise FovealError(f"{self.num_workers} workers, {self.num_cpus} CPUs a task; both must be at least 1")

    def run(self, task: Task, stage: Stage, step: str, num_shards: int, *, progress: Progress | None = None) -> None:
        """Run those shards of a step that are not there yet.

        Args:
            task: a function of a module, called with the stage's folder and the number of a shard; saves that shard.
            stage: of the step.
            step: its name.
            num_shards: of the step.
            progress: called with (shards done, shards in all).

        Raises:
            FovealError: an error of a shard, or a worker that died; finished shards stay.
        """
        missing = stage.missing(step, num_shards)
        num_done = num_shards - len(missing)
        for shard in self._finished(functools.partial(task, stage.folder), missing):
            if not stage.path(step, shard).is_file():
                raise FovealError(
                    f"a worker finished shard {shard} of {step}, and it is not in {stage.folder}; put the folder on a "
                    "disk that every node sees under this path"
                )
            num_done += 1
            if progress:
                progress(num_done, num_shards)

    def _finished(self, task: Callable[[int], None], shards: Sequence[int]) -> Iterator[int]:
        if not shards:
            return
        if self.engine == "ray":
            threaded = functools.partial(_with_threads, task, self.num_cpus)
            with ray_cluster(self.ray_address) as ray:
                yield from run_tasks(ray, threaded, shards, num_cpus=self.num_cpus)
        elif self.num_workers == 1 or len(shards) == 1:
            for shard in shards:
                task(shard)
                yield shard
        else:
            yield from self._in_processes(task, shards)

    def _in_processes(self, task: Callable[[int], None], shards: Sequence[int]) -> Iterator[int]:
        pool = _pool(self.num_workers)
        futures = {pool.submit(task, shard): shard for shard in shards}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            _end(self.num_workers)
            raise FovealError(
                f"a worker process died ({error}), perhaps for lack of memory; finished shards stay: run the same "
                "command again, with fewer workers"
            ) from error
        except BaseException:  # also Ctrl-C: what runs now is lost, its workers are not waited for
            _end(self.num_workers)
            raise


_pools: dict[int, ProcessPoolExecutor] = {}  # kept from step to step: starting a process takes seconds


def _pool(num_workers: int) -> ProcessPoolExecutor:
    if num_workers not in _pools:
        num_threads = max(1, torch.get_num_threads() // num_workers)
        context = multiprocessing.get_context("spawn")
        _pools[num_workers] = ProcessPoolExecutor(num_workers, context, initializer=_prepare, initargs=(num_threads,))
    return _pools[num_workers]


def _end(num_workers: int) -> None:
    pool = _pools.pop(num_workers)
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


LOCAL = Runner()  # one shard after another, in this process


def _prepare(num_threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    torch.set_num_threads(num_threads)


def _with_threads(task: Callable[[int], None], num_threads: int, shard: int) -> None:
    torch.set_num_threads(num_threads)
    task(shard)
