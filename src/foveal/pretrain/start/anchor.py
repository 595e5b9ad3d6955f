"""What the Gram term holds the student's patches to: a frozen backbone, from the start or from the run itself."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.vit import VisionTransformer
from foveal.pretrain.network import Batch
from foveal.pretrain.start.settings import Gram


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

    def weight_at(self, step: int) -> float:
        """Return the weight of the Gram term in a step."""
        return self.settings.weight if step >= self.settings.start_step else 0.0

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Copy the teacher if it is time; depends on the step alone, and so may be called again for the same step."""
        settings = self.settings
        since, every = step - settings.start_step, settings.refresh_every_steps
        if settings.anchor == "start" or since < 0:
            return
        if since == 0 or (every and since % every == 0 and since // every <= settings.max_refreshes):
            self.backbone.load_state_dict(self._teacher.state_dict())

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
        return {} if self.settings.anchor == "start" else dict(self.backbone.state_dict())
