"""A step that was not finite, kept in one file and run again on a CPU to see where it begins.

The file is safetensors: every tensor of the learner as it was before the step, and the crops and masks that it saw, in
the integers of the images; its metadata is JSON: the recipe, the step, its scheduled values, its losses and norms, and
the images' uris and sha256. Neither the images nor the run are needed to run it again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foveal.errors import BadImageError, RunError
from foveal.features.pictures import RED, displayed, picture_grid
from foveal.files import write_atomically
from foveal.images.imageset import ImageSet
from foveal.pretrain.data.loader import MicroBatches, RawBatch, StepBatches, finished
from foveal.pretrain.distillation.learner import build_learner
from foveal.pretrain.learner import Learner
from foveal.pretrain.optimizer import clip_each
from foveal.pretrain.recipe import Recipe, build_recipe
from foveal.pretrain.trace import Finding, traced

FORMAT = "1"
_CROPS = "micro_batch"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Replayed:
    """What a step did when it was run again.

    Attributes:
        step: its number.
        recorded: losses and gradient norms as the run had them, by name.
        found: the same now.
        findings: see `foveal.pretrain.trace`; the first is where the step stops being finite.
        images: uri of each image, in the order of the sheet.
        blamed: those whose crops alone, without the others, are not finite in the teacher or the student.
        sheet: the crops, a row an image, those of `blamed` framed in red.
    """

    step: int
    recorded: dict[str, float]
    found: dict[str, float]
    findings: list[Finding]
    images: list[str]
    blamed: list[str]
    sheet: Image.Image

    @property
    def is_same(self) -> bool:
        """Whether every loss and norm is that of the run, to the last bit."""
        return _written(self.recorded) == _written(self.found)


class _Step(NamedTuple):
    content: dict[str, Any]
    recipe: Recipe
    tensors: dict[str, dict[str, Tensor]]
    micro_batches: list[RawBatch]


def write_replay(
    path: Path,
    *,
    recipe: Recipe,
    images: ImageSet,
    learner: Learner,
    step: int,
    rates: Mapping[str, float],
    measured: Mapping[str, float],
    is_main: bool = True,
) -> None:
    """Write the file of a step that was discarded, whole or not at all.

    Args:
        path: its name; the folder is made.
        recipe: of the run.
        images: of the run; the crops are cut from them again.
        learner: as it was before the step; of several processes every one has to call this.
        step: number of the step.
        rates: its scheduled values.
        measured: its losses and gradient norms.
        is_main: whether this process writes the file.

    Raises:
        RunError: it cannot be written.
    """
    tensors = {
        f"{stem}/{name}": (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().contiguous()
        for stem, named in learner.tensors().items()
        for name, value in named.items()
    }
    if not is_main:
        return
    per_step = recipe.batch_size // recipe.micro_batch
    source, numbers = MicroBatches(images, recipe), list[int]()
    for group in range(per_step):
        raw = finished(source[step * per_step + group], device=_CPU)
        numbers += raw.numbers
        for name in ("global_crops", "local_crops", "masks"):
            tensors[f"{_CROPS}/{group}/{name}"] = getattr(raw, name)
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "step": step,
        "rates": dict(rates),
        "measured": _written(measured),
        "threads": torch.get_num_threads(),
        "images": [{"uri": images.uri(number), "sha256": _sha256(images, number)} for number in numbers],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rows of the same storage, as of expanded or tied tensors, are written out one by one.
        data = save(
            {name: value.clone() for name, value in tensors.items()},
            metadata={"foveal_replay": FORMAT, "content": json.dumps(content)},
        )
        write_atomically(path, data)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"cannot write {path}: {error}; make room to be able to look into step {step}") from error


def replay(path: str | Path) -> Replayed:
    """Run a written step again, on the CPU.

    Losses and norms are the same to the last bit where the run was one process on such a CPU; its number of threads is
    taken from the file.

    Raises:
        RunError: there is no such file, or it is none of `write_replay`.
    """
    step = _read(Path(path))
    content, recipe = step.content, step.recipe
    if recipe.distill:
        raise RunError(f"{path} is a step of distillation, which replay does not run; its crops and tensors are in it")
    threads = torch.get_num_threads()
    torch.set_num_threads(content["threads"])
    try:
        learner = build_learner(recipe, device=_CPU)
        learner.restore(step.tensors, where=str(path))
        batches = StepBatches(step.micro_batches, mean=recipe.channel_mean, std=recipe.channel_std, device=_CPU)
        with traced({"teacher": cast(nn.Module, learner.result), "student": learner.student}) as findings:
            losses = learner.accumulate(batches, step=content["step"], rates=content["rates"])
        norms = clip_each(learner.student, recipe.optimizer.clip)
        found = {name: value.item() for name, value in losses.items()}
        found |= {f"grad_norm_{name}": value.item() for name, value in norms.items()}
        images = [image["uri"] for image in content["images"]]
        bad = _not_finite_alone(learner, batches)
    finally:
        torch.set_num_threads(threads)
    return Replayed(
        step=content["step"],
        recorded={name: float.fromhex(value) for name, value in content["measured"].items()},
        found=found,
        findings=findings,
        images=images,
        blamed=[uri for uri, is_bad in zip(images, bad, strict=True) if is_bad],
        sheet=_contact_sheet(step.micro_batches, images, bad),
    )


def _read(path: Path) -> _Step:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("foveal_replay") != FORMAT:
                raise RunError(f"{path} is not a step to replay of this version; give RUN/replay/step_N.safetensors")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        content = json.loads(metadata["content"])
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path} cannot be read: {error}; give RUN/replay/step_N.safetensors") from error
    stems: dict[str, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        stem, _, name = full_name.partition("/")
        stems.setdefault(stem, {})[name] = value
    crops = stems.pop(_CROPS)
    raw = [
        RawBatch(crops[f"{n}/global_crops"], crops[f"{n}/local_crops"], crops[f"{n}/masks"], [])
        for n in range(len(crops) // 3)
    ]
    return _Step(content, build_recipe(content["recipe"], where=str(path)), stems, raw)


@torch.no_grad()
def _not_finite_alone(learner: Learner, batches: StepBatches) -> list[bool]:
    """Tell for each image whether its global crops alone give features that are not finite."""
    bad: list[bool] = []
    for batch in batches:
        crops = len(batch.global_crops)
        finite = torch.ones(crops, dtype=torch.bool)
        for backbone in (learner.result.backbone, learner.student.get_submodule("backbone")):
            tokens = backbone(batch.global_crops)
            finite &= tokens.cls.isfinite().all(1) & tokens.patches.flatten(1).isfinite().all(1)
        first, second = finite.split(crops // 2)
        bad += (~(first & second)).tolist()
    return bad


def _contact_sheet(micro_batches: Sequence[RawBatch], images: Sequence[str], bad: Sequence[bool]) -> Image.Image:
    rows: list[list[np.ndarray]] = []
    for raw in micro_batches:
        count = len(raw.global_crops) // 2
        crops = [*raw.global_crops.split(count), *raw.local_crops.split(count)]
        rows += [[displayed(crop[number].numpy()) for crop in crops] for number in range(count)]
    labels = [[uri, *[""] * (len(row) - 1)] for uri, row in zip(images, rows, strict=True)]
    frames = [[RED if is_bad else None for _ in row] for row, is_bad in zip(rows, bad, strict=True)]
    return picture_grid(rows, labels=labels, frames=frames, cell_size=96)


def _written(values: Mapping[str, float]) -> dict[str, str]:
    """Losses and norms as hexadecimal text, which keeps every bit and also what is not finite."""
    return {name: float(value).hex() for name, value in values.items()}


def _sha256(images: ImageSet, number: int) -> str | None:
    try:
        return hashlib.sha256(images.read(number)).hexdigest()
    except BadImageError:
        return None  # gone since the step was made
