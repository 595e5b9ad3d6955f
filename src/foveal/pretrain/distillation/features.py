"""Distillation without heads: tokens predict the teacher's, and patches keep the teacher's relations."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.errors import ImageSetError
from foveal.images.imageset import ImageSet
from foveal.objectives.features import Moments, MomentSums, feature_loss
from foveal.objectives.gram import gram_loss
from foveal.pretrain.data.loader import MicroBatches, to_batch
from foveal.pretrain.distillation.foreign import build_backbone
from foveal.pretrain.distillation.teacher import Teacher
from foveal.pretrain.network import Batch
from foveal.pretrain.processes.parallel import World
from foveal.pretrain.recipe import Recipe

MOMENT_IMAGES = 1000  # images of the first steps over which the teacher's features are measured


class FeatureStudent(nn.Module):
    """A backbone with a linear map from its class token, and one from its patches, to the teacher's width.

    The maps are linear so that what the teacher knows ends up in the backbone, whose tokens are the result.
    """

    def __init__(self, backbone: VisionTransformer, *, teacher_width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.cls_projector = nn.Linear(backbone.config.width, teacher_width)
        self.patch_projector = nn.Linear(backbone.config.width, teacher_width)

    def init_weights(self, generator: torch.Generator) -> "FeatureStudent":
        """Draw initial weights in a fixed order and return self; the maps as the heads': truncated normal, std 0.02."""
        self.backbone.init_weights(generator)
        for projector in (self.cls_projector, self.patch_projector):
            nn.init.trunc_normal_(projector.weight, std=0.02, generator=generator)
            nn.init.zeros_(projector.bias)
        return self


class FeatureObjective:
    """Predict the teacher's tokens of the same crop, and keep the similarities of its patches.

    For each global crop with the student's tokens s and the teacher's t, the loss is

        cls_weight d(A s_cls, z(t_cls)) + patch_weight mean_p d(B s_p, z(t_p)) + relation_weight gram(s, t)

    d is `feature_loss`, z standardises each of the teacher's features by mean and deviation over the first images of
    the run, A and B are linear maps that are trained along, and gram (`gram_loss`) compares the cosine of every pair of
    patches of a crop in the student's own space with the teacher's. Student and teacher see the same pixels: what is
    taught is a function, not an invariance (arXiv 2106.05237).
    """

    def __init__(self, recipe: Recipe, *, teacher: Teacher, device: torch.device) -> None:
        assert recipe.distill is not None
        self._recipe, self._weights, self._teacher, self._device = recipe, recipe.distill, teacher, device
        self._moments: tuple[Moments, Moments] | None = None  # of class and of patch tokens

    def network(self, backbone: BackboneConfig) -> FeatureStudent:
        """Return a backbone with maps to the teacher's width, untrained."""
        built = build_backbone(backbone, seed=self._recipe.seed)
        return FeatureStudent(built, teacher_width=self._teacher.card.backbone.width)

    def accumulate(
        self,
        students: Mapping[str, FeatureStudent],
        micro_batches: Sequence[Batch],
        *,
        rates: Mapping[str, float],
        generators: Callable[[int], torch.Generator],
        world: World,
    ) -> dict[str, dict[str, Tensor]]:
        """See `Objective`; one pass of the teacher serves all students of one patch size."""
        share = 1 / (len(micro_batches) * world.size)
        found: dict[str, dict[str, Tensor]] = {name: {} for name in students}
        for number, batch in enumerate(micro_batches, start=world.rank * len(micro_batches)):
            targets = dict[tuple[int, int], tuple[Tensor, Tensor]]()
            for name, student in students.items():
                grid = student.backbone.grid_of(batch.global_crops)
                if grid not in targets:
                    targets[grid] = self._teacher.tokens(batch.global_crops, grid=grid)
                losses = self._losses(student, batch.global_crops, targets[grid], generator=generators(number))
                (losses["loss"] * share).backward()
                for key, value in losses.items():
                    found[name][key] = found[name].get(key, 0) + value.detach() * share
        return {name: world.total(losses) for name, losses in found.items()}

    def _losses(
        self, student: FeatureStudent, crops: Tensor, targets: tuple[Tensor, Tensor], *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        cls, patches = _tokens(student.backbone, crops, generator=generator)
        of_cls, of_patches = self._measured()
        teacher_cls, teacher_patches = targets
        weights = self._weights
        terms = {
            "cls": feature_loss(student.cls_projector(cls), of_cls.standardise(teacher_cls)),
            "patch": feature_loss(
                student.patch_projector(patches.flatten(0, 1)), of_patches.standardise(teacher_patches.flatten(0, 1))
            ),
            "relation": gram_loss(patches, teacher_patches),
        }
        loss = (
            weights.cls_weight * terms["cls"]
            + weights.patch_weight * terms["patch"]
            + weights.relation_weight * terms["relation"]
        )
        return {"loss": loss, **terms}

    def _measured(self) -> tuple[Moments, Moments]:
        """Return the moments of the teacher's class and patch tokens, measured once a run.

        They are taken over global crops of the run's first images, made again here, so that they depend on neither the
        batch size nor where a run was interrupted.
        """
        if self._moments is None:
            batches = MicroBatches(ImageSet.open(self._recipe.images), self._recipe)
            sums = MomentSums(), MomentSums()
            for number in range(math.ceil(min(MOMENT_IMAGES, len(batches.images)) / self._recipe.micro_batch)):
                raw = batches[number]
                if raw.failure:
                    raise ImageSetError(raw.failure)
                batch = to_batch(raw, mean=self._recipe.channel_mean, std=self._recipe.channel_std, device=self._device)
                patch = self._recipe.backbone.patch_size
                grid = batch.global_crops.shape[-2] // patch, batch.global_crops.shape[-1] // patch
                for total, tokens in zip(sums, self._teacher.tokens(batch.global_crops, grid=grid), strict=True):
                    total.add(tokens)
            self._moments = (sums[0].moments(), sums[1].moments())
        return self._moments

    def commit(self, rates: Mapping[str, float]) -> None:
        """Do nothing: the objective has no state that moves."""

    def discard(self) -> None:
        """Do nothing; see `commit`."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments of the teacher's features, once they are measured."""
        if self._moments is None:
            return {}
        of_cls, of_patches = self._moments
        return {
            f"{kind}.{name}": value
            for kind, moments in (("cls", of_cls), ("patch", of_patches))
            for name, value in moments._asdict().items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the moments, if the checkpoint is of a later moment than the start."""
        if not tensors:
            return
        found = {name: value.to(self._device) for name, value in tensors.items()}
        self._moments = (
            Moments(found["cls.mean"], found["cls.std"]),
            Moments(found["patch.mean"], found["patch.std"]),
        )


def _tokens(backbone: VisionTransformer, crops: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return class tokens (B, D) and patch tokens (B, P, D) after the final norm."""
    num_crops = len(crops)
    grid_h, grid_w = backbone.grid_of(crops)
    length = backbone.num_prefix_tokens + grid_h * grid_w
    rows = torch.arange(num_crops * length, device=crops.device).view(num_crops, length)
    read = torch.cat([rows[:, :1], rows[:, backbone.num_prefix_tokens :]], dim=1)
    found = backbone.forward_rows([crops], [None], read.flatten(), generator=generator).unflatten(0, read.shape)
    return found[:, 0], found[:, 1:]
