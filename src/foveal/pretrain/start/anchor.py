"""What the Gram term holds the student's patches to: a frozen backbone, from the start or from the run itself."""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import check_tensors
from foveal.pretrain.network import Batch
from foveal.pretrain.start.settings import Gram

_COPIES = "copies"  # how many were taken, beside the tensors of the newest


class GramAnchor:
    """A frozen backbone whose patch similarities the student keeps (DINOv3, arXiv 2508.10104, section 4.2).

    With anchor "start" it is the backbone that the run began with. With "teacher" it is a copy of the teacher as it was
    before step `start_step`, taken again every `refresh_every_steps` steps, at most `max_refreshes` times; a copy taken
    in an earlier step is part of the checkpoint.

    Args:
        settings: see `Gram`.
        teacher: the run's teacher as it was built, before a checkpoint is restored.
    """

    def __init__(self, settings: Gram, *, teacher: VisionTransformer) -> None:
        self.settings = settings
        self._teacher = teacher
        self.backbone = copy.deepcopy(teacher).requires_grad_(False).eval()
        self._copies = torch.zeros((), dtype=torch.int64)  # taken so far

    def weight_at(self, step: int) -> float:
        """Return the weight of the Gram term in a step."""
        return self.settings.weight if step >= self.settings.start_step else 0.0

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Copy the teacher if a copy is due that was not taken; again for the same step it does nothing.

        Copies are counted and not found by the number of the step, since the guard may leave out that very step.
        """
        settings = self.settings
        since, every = step - settings.start_step, settings.refresh_every_steps
        if settings.anchor == "start" or since < 0:
            return
        due = 1 + (min(since // every, settings.max_refreshes) if every else 0)
        if self._copies < due:
            self.backbone.load_state_dict(self._teacher.state_dict())
            self._copies.fill_(due)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return the anchor's patch tokens (2 B, P, D) of the global crops, on the student's grid.

        Where the batch has the crops at a higher resolution, they are seen there, and the patch tokens are resized to
        the student's grid, bicubic without antialiasing, as published.
        """
        crops = batch.global_crops if batch.anchor_crops is None else batch.anchor_crops
        patches = self.backbone(crops).patches
        if batch.anchor_crops is None:
            return patches
        grid = patches.mT.unflatten(-1, self.backbone.grid_of(crops)).float()
        resized = F.interpolate(grid, size=self.backbone.grid_of(batch.global_crops), mode="bicubic")
        return resized.flatten(2).mT

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds: nothing where the anchor is the start, which is read again."""
        if self.settings.anchor == "start":
            return {}
        return dict(self.backbone.state_dict()) | {_COPIES: self._copies}

    def restore(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Take over the tensors of a checkpoint; WeightsError, naming `where`, if they do not fit."""
        if wanted := self.tensors():
            found = dict(check_tensors(dict(tensors), wanted, where=where))
            self._copies.copy_(found.pop(_COPIES))
            self.backbone.load_state_dict(found)
