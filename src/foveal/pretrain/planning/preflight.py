"""Before a run: what it will take, measured on a few real steps, and whether it fits."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from foveal.engine.memory import freed_memory_kept
from foveal.images.imageset import ImageSet
from foveal.pretrain.data.loader import RawBatch, micro_batches
from foveal.pretrain.loop import Trainer
from foveal.pretrain.planning.autopilot import this_hardware
from foveal.pretrain.planning.cost import checkpoint_bytes, memory_bytes, num_parameters, step_flops
from foveal.pretrain.planning.ready import device_of, ready_recipe
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.run import RunFolder
from foveal.pretrain.start.weights import StartWeights

_MEASURED_STEPS = 3
_MAX_MICRO_BATCHES = 2  # of a measured step: the others cost the same
_ENOUGH_S = 30.0
_GB = 1e9


@dataclass(frozen=True)
class Preflight:
    """What a run will take.

    num_images, num_parameters: of the set, and of one network with its heads.
    memory: predicted bytes of the device by what they are, and `memory_there` how many there are.
    peak_bytes: measured, this program and its libraries included; None where the run does not fit.
    step_s, load_s: seconds of a step with its images in memory, and of making its images with nothing else running.
    overlapped: whether other processes make the images meanwhile.
    checkpoint_bytes, disk_needed, disk_free: of one; of all that are kept at once; of the run's disk.
    step_tflop: 10^12 operations of a step.
    """

    recipe: Recipe
    num_images: int
    num_parameters: int
    memory: dict[str, int]
    memory_there: int
    peak_bytes: int | None
    step_s: float | None
    load_s: float | None
    checkpoint_bytes: int
    disk_needed: int
    disk_free: int
    step_tflop: float

    @property
    def hours(self) -> float | None:
        """Hours of the whole run, kNN and saving left out."""
        if self.step_s is None or self.load_s is None:
            return None
        each = max(self.step_s, self.load_s) if self.recipe.num_workers else self.step_s + self.load_s
        return each * self.recipe.total_steps / 3600

    @property
    def problems(self) -> list[str]:
        """Why the run cannot work as it is; empty where it can."""
        found = []
        needed = sum(self.memory.values())
        if needed > self.memory_there:
            found.append(
                f"it needs about {needed / _GB:.1f} GB of memory and {self.memory_there / _GB:.1f} are there: "
                "use a smaller micro_batch_size, or a smaller backbone.variant"
            )
        if self.disk_needed > self.disk_free:
            found.append(
                f"{self.recipe.checkpoints.keep} checkpoints, one of an interruption and the one being written take "
                f"{self.disk_needed / _GB:.1f} GB and {self.disk_free / _GB:.1f} are free: "
                "make room, or use a smaller checkpoints.keep"
            )
        return found

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as (name, text) rows."""
        recipe, largest = self.recipe, sorted(self.memory.items(), key=lambda item: -item[1])[:3]
        epochs = recipe.total_steps * recipe.batch_size / self.num_images
        rows = [
            (
                "images",
                f"{self.num_images:,}, seen {epochs:.1f} times in {recipe.total_steps:,} steps of {recipe.batch_size}",
            ),
            ("network", f"{self.num_parameters / 1e6:.1f} M parameters with heads"),
            (
                "memory",
                f"about {sum(self.memory.values()) / _GB:.2f} GB ("
                + ", ".join(f"{name} {size / _GB:.2f}" for name, size in largest)
                + f"); {self.memory_there / _GB:.1f} GB there"
                + ("" if self.peak_bytes is None else f"; measured {self.peak_bytes / _GB:.2f} GB with libraries"),
            ),
            (
                "checkpoints",
                f"{self.checkpoint_bytes / _GB:.2f} GB each, at most {self.disk_needed / _GB:.2f} GB at once; "
                f"{self.disk_free / _GB:.1f} GB free",
            ),
        ]
        if self.step_s is not None and self.load_s is not None and self.hours is not None:
            rows += [
                (
                    "step",
                    f"{self.step_s:.2f} s with images in memory: {recipe.batch_size / self.step_s:.1f} images/s, "
                    f"{self.step_tflop / self.step_s * 1000:.0f} GFLOP/s",
                ),
                (
                    "data",
                    f"{recipe.batch_size / self.load_s:.1f} images/s with num_workers={recipe.num_workers}: "
                    + self._bound(self.load_s / self.step_s),
                ),
                ("time", f"{self.hours:.1f} hours"),
            ]
        return rows

    def _bound(self, share: float) -> str:
        """Say what limits the run, where loading a step's images takes `share` of the step."""
        if not self.recipe.num_workers:
            return f"loading adds {share:.0%} to every step" + ("; use num_workers=1" if share > 0.1 else "")
        if share > 1:
            waits = 1 - 1 / share
            return f"loader-bound, training waits {waits:.0%} of the time; use more num_workers or smaller images"
        return f"compute-bound, the loader could feed {1 / share:.1f} times as much"


def preflight(recipe: Recipe) -> Preflight:
    """Measure a few steps of a run in a folder of its own; the run folder is not touched.

    Raises:
        RecipeError, ImageSetError: as `pretrain` would raise them before its first step.
    """
    images = ImageSet.open(recipe.images)
    recipe, start = ready_recipe(recipe, images)
    out = Path(recipe.out).absolute()
    on_disk = next(folder for folder in (out, *out.parents) if folder.is_dir())
    one = checkpoint_bytes(recipe)
    hardware = this_hardware(device_of(recipe))
    memory = memory_bytes(recipe)
    measured = _measure(recipe, images, start) if sum(memory.values()) <= hardware.memory else (None, None, None)
    peak_bytes, step_s, load_s = measured
    return Preflight(
        recipe=recipe,
        num_images=len(images),
        num_parameters=sum(num_parameters(recipe).values()),
        memory=memory,
        memory_there=hardware.memory,
        peak_bytes=peak_bytes,
        step_s=step_s,
        load_s=load_s,
        checkpoint_bytes=one,
        disk_needed=one * (recipe.checkpoints.keep + 2),
        disk_free=shutil.disk_usage(on_disk).free,
        step_tflop=sum(step_flops(recipe).values()) / 1e12,
    )


def _measure(recipe: Recipe, images: ImageSet, start: StartWeights | None) -> tuple[int, float, float]:
    """Return the peak bytes, and the seconds of a step and of making its images."""
    per_step = recipe.batch_size // recipe.micro_batch
    measured = min(per_step, _MAX_MICRO_BATCHES)
    part = recipe.model_copy(update={"batch_size": measured * recipe.micro_batch, "knn": None})
    load_s, raw = _load(part, images, count=measured)
    with tempfile.TemporaryDirectory() as folder, freed_memory_kept():
        part = part.model_copy(update={"out": f"{folder}/run"})
        run = RunFolder(part, images_hash=images.hash)
        try:
            trainer = Trainer(part, folder=run, images=images, start=start)
            with _peak_memory(trainer.device) as peak:
                step_s = min(_step_times(trainer, raw))
        finally:
            run.close()
    return peak[0], step_s * per_step / measured, load_s * per_step


def _step_times(trainer: Trainer, raw: list[RawBatch]) -> Iterator[float]:
    """Give the seconds of some steps; the first is slower, and where steps take long it is the only one."""
    began = time.perf_counter()
    for _ in range(1 + _MEASURED_STEPS):
        started = time.perf_counter()
        trainer.train_step(raw)
        yield time.perf_counter() - started
        if time.perf_counter() - began > _ENOUGH_S:
            return


def _load(recipe: Recipe, images: ImageSet, *, count: int) -> tuple[float, list[RawBatch]]:
    """Return the seconds a micro-batch takes to make once the workers are at it, and the first `count` of them."""
    together = max(count, recipe.num_workers)  # as many as there are workers arrive together at first
    more = max(_MEASURED_STEPS, 2 * recipe.num_workers)
    steps = range(-(-(together + more) // count))
    source = iter(micro_batches(images, recipe, steps=steps))
    first = list(islice(source, together))
    started = time.perf_counter()
    measured = sum(1 for _ in source)
    return (time.perf_counter() - started) / measured, first[:count]


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Fill a list with the peak bytes of the block: of the device, or on a CPU of the whole process."""
    peak: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
        return
    with suppress(OSError):  # Linux: the high-water mark starts again
        Path("/proc/self/clear_refs").write_text("5")
    yield peak
    peak.append(_high_water())


def _high_water() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
