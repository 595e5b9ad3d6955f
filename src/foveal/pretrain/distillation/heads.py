"""The paper's distillation: the pretraining objective with a frozen teacher and its heads as the source of targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast, overload

import torch
from torch import Tensor

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.weights import HEADS
from foveal.errors import RecipeError
from foveal.objectives.heads import DINOHead
from foveal.pretrain.distillation.foreign import build_backbone
from foveal.pretrain.distillation.teacher import Teacher, TeacherBackbone, TeacherHeads, open_heads
from foveal.pretrain.network import Batch, Network
from foveal.pretrain.processes.parallel import World
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.step import Centers, student_gradients, teacher_targets


class _TeacherNetwork(NamedTuple):
    """What the training step asks of a teacher."""

    backbone: TeacherBackbone
    dino_head: DINOHead
    patch_head: DINOHead


class HeadObjective:
    """DINO, iBOT and KoLeo with the teacher's prototypes as targets (arXiv 2304.07193, section 5).

    Unlike in pretraining nothing is masked: the iBOT term reads all patches of both global crops, of the student as of
    the teacher. The student's heads start from scratch and have as many prototypes as the teacher's.

    Raises:
        RecipeError: the teacher has no heads, or the recipe's differ in the number of prototypes or in being shared.
        WeightsError: the teacher's heads are damaged or do not fit its backbone.
    """

    def __init__(self, recipe: Recipe, *, teacher: Teacher, device: torch.device) -> None:
        if not (Path(teacher.source) / HEADS).is_file():
            raise RecipeError(
                f"distill.objective=heads needs a teacher with heads, and {teacher.source} has no {HEADS} (public "
                "checkpoints have none); use distill.objective=features, or train heads for it first: "
                f"foveal pretrain --recipe relearn_heads start={teacher.source}"
            )
        heads = open_heads(teacher.source)
        _check_heads(recipe, heads)
        self._recipe, self._teacher = recipe, teacher
        self._heads = TeacherHeads(*(head.to(device) for head in heads))
        self._settings = replace(recipe.objective.settings(), hide_masked=False)
        self._centers = dict[int, Centers]()  # by the student's patch size: of the targets on one grid
        self._device = device

    def network(self, backbone: BackboneConfig) -> Network:
        """Return a backbone with heads, untrained."""
        heads = self._recipe.heads
        built = build_backbone(backbone, seed=self._recipe.seed)
        return Network(built, dino=heads.dino.size(), ibot=heads.ibot.size() if heads.ibot else None)

    def accumulate(
        self,
        students: Mapping[str, Network],
        micro_batches: Sequence[Batch],
        *,
        rates: Mapping[str, float],
        generators: Callable[[int], torch.Generator],
        world: World,
    ) -> dict[str, dict[str, Tensor]]:
        """See `Objective`; one pass of the teacher serves all students of one patch size."""
        found = dict[str, dict[str, Tensor]]()
        for patch_size in {student.backbone.config.patch_size: None for student in students.values()}:
            batches = _AllPatches(micro_batches, patch_size=patch_size)
            teacher = _TeacherNetwork(TeacherBackbone(self._teacher, patch_size=patch_size), *self._heads)
            targets = teacher_targets(
                cast(Network, teacher),
                batches,
                settings=self._settings,
                centers=self._centers_of(patch_size),
                temperature=rates["teacher_temperature"],
                world=world,
            )
            group = {k: student for k, student in students.items() if student.backbone.config.patch_size == patch_size}
            kept = list(targets) if len(group) > 1 else targets
            for name, student in group.items():
                found[name] = student_gradients(
                    student, batches, kept, settings=self._settings, generators=generators, world=world
                )
        return {name: found[name] for name in students}

    def _centers_of(self, patch_size: int) -> Centers:
        if patch_size not in self._centers:
            dino, ibot = (torch.zeros(len(head.last_layer["weight_v"]), device=self._device) for head in self._heads)
            self._centers[patch_size] = Centers(dino, ibot)
        return self._centers[patch_size]

    def commit(self, rates: Mapping[str, float]) -> None:
        """Move the centres."""
        for centers in self._centers.values():
            centers.commit(self._recipe.objective.center_momentum)

    def discard(self) -> None:
        """Forget the logits noted for the centres."""
        for centers in self._centers.values():
            centers.discard()

    def tensors(self) -> dict[str, Tensor]:
        """Return the centres of the targets on each grid."""
        return {
            f"centers.{patch_size}.{term}": getattr(centers, term)
            for patch_size, centers in self._centers.items()
            for term in ("dino", "ibot")
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the centres."""
        for key, value in tensors.items():
            _, patch_size, term = key.split(".")
            setattr(self._centers_of(int(patch_size)), term, value.to(self._device))


class _AllPatches(Sequence[Batch]):
    """Micro-batches in which the iBOT term reads every patch."""

    def __init__(self, micro_batches: Sequence[Batch], *, patch_size: int) -> None:
        self._batches, self._patch_size = micro_batches, patch_size

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, number: int) -> Batch: ...
    @overload
    def __getitem__(self, number: slice) -> list[Batch]: ...
    def __getitem__(self, number: int | slice) -> Batch | list[Batch]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        batch = self._batches[number]
        num_crops, _, height, width = batch.global_crops.shape
        num_patches = (height // self._patch_size) * (width // self._patch_size)
        return batch._replace(
            masks=torch.ones(num_crops, num_patches, dtype=torch.bool, device=batch.global_crops.device)
        )


def _check_heads(recipe: Recipe, heads: TeacherHeads) -> None:
    """Raise RecipeError where the student's heads cannot learn from the teacher's."""
    assert recipe.distill is not None
    teacher, separate = recipe.distill.teacher, heads.patch_head is not heads.dino_head
    num_patch = len(heads.patch_head.last_layer["weight_v"])
    if separate and recipe.heads.ibot is None:
        raise RecipeError(
            f"distill.teacher={teacher} has an iBOT head of its own, heads.ibot=null shares the DINO head; "
            f"set heads.ibot.num_prototypes={num_patch}"
        )
    for key, ours, theirs in (
        ("heads.dino", recipe.heads.dino.num_prototypes, len(heads.dino_head.last_layer["weight_v"])),
        ("heads.ibot", (recipe.heads.ibot or recipe.heads.dino).num_prototypes, num_patch),
    ):
        if ours != theirs:
            raise RecipeError(
                f"{key}.num_prototypes={ours}, but distill.teacher={teacher} has {theirs}; "
                f"set {key}.num_prototypes={theirs}"
            )
