"""One training step: teacher targets, student losses, gradients. No data, no files, no schedule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.objectives.dino import dino_loss
from foveal.objectives.gram import gram_loss
from foveal.objectives.heads import DINOHead
from foveal.objectives.ibot import ibot_loss
from foveal.objectives.koleo import koleo_loss
from foveal.objectives.sinkhorn import sinkhorn_knopp, softmax_center, updated_center
from foveal.pretrain.parallel import ALONE, World


@dataclass(frozen=True)
class HeadSize:
    """Sizes of a projection head."""

    num_prototypes: int
    bottleneck: int
    hidden: int


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights and temperatures of the objective; the defaults are the published ones.

    With `hide_masked` off the student sees the patches that the iBOT term reads, as in distillation.
    """

    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    gram_weight: float = 0.0
    hide_masked: bool = True
    centering: Literal["sinkhorn_knopp", "centering"] = "sinkhorn_knopp"
    student_temperature: float = 0.1
    center_momentum: float = 0.9


class Batch(NamedTuple):
    """A micro-batch of B images.

    global_crops: (2 B, C, S, S) float, normalised, first crops of all images, then second crops.
    local_crops: (V B, C, s, s), crop after crop.
    masks: (2 B, P) bool, the patches that the iBOT term reads; the student sees the mask token in their place.
    """

    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor


class Network(nn.Module):
    """A backbone with its heads; `ibot_head` is absent when both terms share the DINO head."""

    def __init__(self, backbone: BackboneConfig, *, dino: HeadSize, ibot: HeadSize | None) -> None:
        super().__init__()
        self.backbone = VisionTransformer(backbone)
        self.dino_head = _head(backbone.width, dino)
        if ibot is not None:
            self.ibot_head = _head(backbone.width, ibot)

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


@dataclass
class Centers:
    """EMA centres of the teacher's logits, used by softmax centring: (K,) each, zero at the start.

    A step's targets use the centres from before the step. Its logits are summed over all micro-batches and move the
    centres once, when the step is known to be good, so that accumulation does not change them.
    """

    dino: Tensor
    ibot: Tensor
    pending: list[tuple[Tensor, int, Tensor, int]] = field(default_factory=list)

    def add(self, dino_logits: Tensor, ibot_logits: Tensor) -> None:
        """Note the logits of one micro-batch: (N, K) each."""
        self.pending.append((dino_logits.sum(0), len(dino_logits), ibot_logits.sum(0), len(ibot_logits)))

    def commit(self, momentum: float) -> None:
        """Move the centres towards the mean of the logits noted in this step."""
        if self.pending:
            dino, num_dino, ibot, num_ibot = zip(*self.pending, strict=True)
            self.dino = updated_center(self.dino, torch.stack(dino).sum(0), sum(num_dino), momentum=momentum)
            self.ibot = updated_center(self.ibot, torch.stack(ibot).sum(0), sum(num_ibot), momentum=momentum)
        self.discard()

    def discard(self) -> None:
        """Forget the logits of a step that did not count."""
        self.pending = []


def accumulate_step(
    student: Network,
    teacher: Network,
    micro_batches: Sequence[Batch],
    *,
    settings: ObjectiveSettings,
    centers: Centers,
    teacher_temperature: float,
    generators: Callable[[int], torch.Generator] | None = None,
    anchor: Callable[[Batch], Tensor] | None = None,
    world: World = ALONE,
) -> dict[str, Tensor]:
    """Run the objective on the micro-batches of a step and add its gradient to the student's.

    Every process brings as many micro-batches as the others; those of rank r are numbers r n .. r n + n - 1 of the
    step. The gradients of all processes add up to the step's. Sinkhorn-Knopp balances a micro-batch, and KoLeo's
    neighbours are chosen in one view of it. Every other term is a mean over images, so that it equals the large batch's
    up to rounding; with softmax centring that is the DINO and the iBOT term, since the centre changes between steps.

    Args:
        student: trained; its class tokens come from the masked forward, as upstream.
        teacher: sees unmasked global crops, without gradient. Width, depth and registers may differ from the student's;
            patch grid and numbers of prototypes may not.
        micro_batches: this process's, of equal size; may be made on access, and is read more than once.
        settings: see `ObjectiveSettings`.
        centers: read, and the logits noted in them until the step is known to be good.
        teacher_temperature: of this step.
        generators: number of a micro-batch in the step -> source of the student's stochastic-depth draws, always in the
            same state; None switches it off.
        anchor: micro-batch -> patch tokens (2 B, P, any width) to which the Gram term holds the student's patch tokens
            of the global crops; needed where `settings.gram_weight` is not 0.
        world: the processes of the run.

    Returns:
        Detached scalars: loss and its parts dino_local, dino_global, ibot, koleo (each before its weight), and gram
        where it has a weight.
    """
    share = 1 / (len(micro_batches) * world.size)
    total = dict[str, Tensor]()
    for number, batch in enumerate(micro_batches, start=world.rank * len(micro_batches)):
        losses = _micro_batch(
            student,
            teacher,
            batch,
            settings=settings,
            centers=centers,
            teacher_temperature=teacher_temperature,
            generator=generators(number) if generators else None,
            anchors=anchor(batch) if anchor and settings.gram_weight else None,
            share=share,
        )
        total = {name: total.get(name, 0) + value * share for name, value in losses.items()}
    return total


def _micro_batch(
    student: Network,
    teacher: Network,
    batch: Batch,
    *,
    settings: ObjectiveSettings,
    centers: Centers,
    teacher_temperature: float,
    generator: torch.Generator | None,
    anchors: Tensor | None,
    share: float,
) -> dict[str, Tensor]:
    """Run the objective on one micro-batch, add `share` times its gradient, and return its terms."""
    num_crops = len(batch.global_crops)
    read = batch.masks.flatten().nonzero().squeeze(1)  # patches of the iBOT term
    dino_targets, ibot_targets = _teacher_targets(
        teacher, batch, read, settings=settings, centers=centers, temperature=teacher_temperature
    )
    needed = read if anchors is None else torch.arange(batch.masks.numel(), device=read.device)
    rows = [_class_rows(student, batch.global_crops), _patch_rows(student, batch, needed)]
    if len(batch.local_crops):
        first_local = num_crops * _length(student, batch.global_crops)
        rows.append(first_local + _class_rows(student, batch.local_crops))
    hidden = batch.masks if settings.hide_masked else None
    tokens = student.backbone.forward_rows(
        [batch.global_crops, batch.local_crops] if len(batch.local_crops) else [batch.global_crops],
        [hidden, None] if len(batch.local_crops) else [hidden],
        torch.cat(rows),
        generator=generator,
    )
    global_cls, patches, local_cls = tokens.split([num_crops, len(needed), len(tokens) - num_crops - len(needed)])
    parts = dict[str, Tensor]()
    if anchors is not None:
        parts["gram"] = gram_loss(patches.unflatten(0, batch.masks.shape), anchors)
        patches = patches.index_select(0, read)
    tau = settings.student_temperature
    features = student.dino_head(torch.cat([global_cls, local_cls]))
    prototypes = student.dino_head.prototypes()
    local_term, global_term = dino_loss(
        features[:num_crops],
        features[num_crops:],
        prototypes,
        targets=dino_targets,
        num_locals=2 * len(local_cls) // num_crops,
        student_temperature=tau,
    )
    head = student.patch_head
    ibot_term = ibot_loss(
        head(patches),
        prototypes if head is student.dino_head else head.prototypes(),
        targets=ibot_targets,
        masks=batch.masks,
        student_temperature=tau,
    )
    koleo_term = koleo_loss(global_cls[: num_crops // 2]) + koleo_loss(global_cls[num_crops // 2 :])
    loss = (
        settings.dino_weight * (local_term + global_term)
        + settings.ibot_weight * ibot_term
        + settings.koleo_weight * koleo_term
    )
    if "gram" in parts:
        loss = loss + settings.gram_weight * parts["gram"]
    (loss * share).backward()
    parts = {
        "loss": loss,
        "dino_local": local_term,
        "dino_global": global_term,
        "ibot": ibot_term,
        "koleo": koleo_term,
    } | parts
    return {name: value.detach() for name, value in parts.items()}


def _length(network: Network, crops: Tensor) -> int:
    """Tokens of one crop."""
    grid_h, grid_w = network.backbone.grid_of(crops)
    return network.backbone.num_prefix_tokens + grid_h * grid_w


def _class_rows(network: Network, crops: Tensor) -> Tensor:
    """Packed rows of the class tokens of a batch of crops."""
    return torch.arange(len(crops), device=crops.device) * _length(network, crops)


def _patch_rows(network: Network, batch: Batch, patches: Tensor) -> Tensor:
    """Packed rows of patches that are counted over all global crops."""
    num_patches, prefix = batch.masks.shape[1], network.backbone.num_prefix_tokens
    return patches // num_patches * (prefix + num_patches) + prefix + patches % num_patches


@torch.no_grad()
def _teacher_targets(
    teacher: Network, batch: Batch, read: Tensor, *, settings: ObjectiveSettings, centers: Centers, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the teacher's targets: (2 B, K) for the global crops and (M, K) for the patches that are read."""
    num_crops = len(batch.global_crops)
    rows = torch.cat([_class_rows(teacher, batch.global_crops), _patch_rows(teacher, batch, read)])
    tokens = teacher.backbone.forward_rows([batch.global_crops], [None], rows)
    head = teacher.patch_head
    prototypes = teacher.dino_head.prototypes()
    dino_logits = _logits(teacher.dino_head(tokens[:num_crops]), prototypes)
    ibot_logits = _logits(head(tokens[num_crops:]), prototypes if head is teacher.dino_head else head.prototypes())
    if settings.centering == "sinkhorn_knopp":
        return (
            sinkhorn_knopp(dino_logits, temperature=temperature),
            sinkhorn_knopp(ibot_logits, temperature=temperature),
        )
    centers.add(dino_logits, ibot_logits)
    return (
        softmax_center(dino_logits, center=centers.dino, temperature=temperature),
        softmax_center(ibot_logits, center=centers.ibot, temperature=temperature),
    )


def _logits(features: Tensor, prototypes: Tensor) -> Tensor:
    return (features @ prototypes.T).float()


class EMA:
    """teacher <- m teacher + (1 - m) student, over all parameters at once."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        self.teacher = list(teacher.parameters())
        self.student = list(student.parameters())

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move the teacher towards the student with the step's momentum."""
        get_ema_multi_avg_fn(momentum)(self.teacher, self.student, None)


def is_finite(losses: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> bool:
    """Tell whether the loss and every gradient norm are finite: the guard before an update."""
    return bool(torch.isfinite(torch.stack([losses["loss"], *norms.values()])).all())
