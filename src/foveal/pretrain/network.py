"""The network of a run, backbone and heads, and the tokens that the objective reads from it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foveal.backbone.layers import Group
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.objectives.heads import DINOHead


@dataclass(frozen=True)
class HeadSize:
    """Sizes of a projection head."""

    num_prototypes: int
    bottleneck: int
    hidden: int


class Batch(NamedTuple):
    """A micro-batch of B images.

    global_crops: (2 B, C, S, S) float, normalised, first crops of all images, then second crops.
    local_crops: (V B, C, s, s), crop after crop.
    masks: (2 B, P) bool, the patches that the iBOT term reads; the student sees the mask token in their place.
    anchor_crops: (2 B, C, S', S'), the global crops at the resolution of the Gram term's anchor, or None: as they are.
    """

    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    anchor_crops: Tensor | None = None


class Network(nn.Module):
    """A backbone with its heads; `ibot_head` is absent when both terms share the DINO head."""

    def __init__(self, backbone: BackboneConfig | VisionTransformer, *, dino: HeadSize, ibot: HeadSize | None) -> None:
        super().__init__()
        self.backbone = VisionTransformer(backbone) if isinstance(backbone, BackboneConfig) else backbone
        width = self.backbone.config.width
        self.dino_head = _head(width, dino)
        if ibot is not None:
            self.ibot_head = _head(width, ibot)

    def init_weights(self, generator: torch.Generator) -> "Network":
        """Draw initial weights of all parts in a fixed order and return self."""
        for child in self.children():
            child.init_weights(generator)  # type: ignore[operator]
        return self

    @property
    def patch_head(self) -> DINOHead:
        """The head of masked patches: its own, or the DINO head."""
        head: DINOHead = getattr(self, "ibot_head", self.dino_head)
        return head


def _head(width: int, size: HeadSize) -> DINOHead:
    return DINOHead(width, hidden=size.hidden, bottleneck=size.bottleneck, num_prototypes=size.num_prototypes)


class StudentTokens(NamedTuple):
    """What the objective reads of a student: class tokens (2 B, D) and (V B, D), and patches of the global crops.

    The patches (M, D) are those of `Batch.masks`, or all of them.
    """

    global_cls: Tensor
    patches: Tensor
    local_cls: Tensor


def student_tokens(
    student: Network, batch: Batch, *, hide_masked: bool, all_patches: bool, generator: torch.Generator | None
) -> StudentTokens:
    """Run the student on all crops of a micro-batch in one pass."""
    crops, masks = [batch.global_crops], [batch.masks if hide_masked else None]
    patches = torch.arange(batch.masks.numel(), device=batch.masks.device) if all_patches else masked_patches(batch)
    rows = [_class_rows(student, batch.global_crops), _patch_rows(student, batch, patches)]
    if len(batch.local_crops):
        crops, masks = [*crops, batch.local_crops], [*masks, None]
        rows.append(_group(student, batch.global_crops).rows + _class_rows(student, batch.local_crops))
    tokens = student.backbone.forward_rows(crops, masks, torch.cat(rows), generator=generator)
    num_global, num_local = len(batch.global_crops), len(batch.local_crops)
    return StudentTokens(*tokens.split([num_global, len(patches), num_local]))


@torch.no_grad()
def class_tokens(student: Network, batch: Batch, *, hide_masked: bool, generator: torch.Generator | None) -> Tensor:
    """Return the class tokens (2 B, D) of the global crops as `student_tokens` has them, without the local crops."""
    return student.backbone.forward_rows(
        [batch.global_crops],
        [batch.masks if hide_masked else None],
        _class_rows(student, batch.global_crops),
        generator=generator,
        absent=[_group(student, batch.local_crops)] if len(batch.local_crops) else [],
    )


@torch.no_grad()
def teacher_tokens(teacher: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the teacher's class tokens (2 B, D) of the unmasked global crops, and its patches of `Batch.masks`."""
    rows = torch.cat([_class_rows(teacher, batch.global_crops), _patch_rows(teacher, batch, masked_patches(batch))])
    tokens = teacher.backbone.forward_rows([batch.global_crops], [None], rows)
    return tokens[: len(batch.global_crops)], tokens[len(batch.global_crops) :]


def masked_patches(batch: Batch) -> Tensor:
    """Return the numbers (M,) of the patches of `Batch.masks`, counted over all global crops."""
    return batch.masks.flatten().nonzero().squeeze(1)


def _group(network: Network, crops: Tensor) -> Group:
    grid_h, grid_w = network.backbone.grid_of(crops)
    return Group(len(crops), network.backbone.num_prefix_tokens + grid_h * grid_w)


def _class_rows(network: Network, crops: Tensor) -> Tensor:
    """Packed rows of the class tokens of a batch of crops."""
    return torch.arange(len(crops), device=crops.device) * _group(network, crops).num_tokens


def _patch_rows(network: Network, batch: Batch, patches: Tensor) -> Tensor:
    """Packed rows of patches that are counted over all global crops."""
    num_patches, prefix = batch.masks.shape[1], network.backbone.num_prefix_tokens
    return patches // num_patches * (prefix + num_patches) + prefix + patches % num_patches
