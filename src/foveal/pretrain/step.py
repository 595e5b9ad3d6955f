"""One training step: teacher targets, student losses, gradients. No data, no files, no schedule."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from foveal.objectives.dino import dino_loss
from foveal.objectives.gram import gram_loss
from foveal.objectives.ibot import ibot_loss
from foveal.objectives.koleo import koleo_loss
from foveal.objectives.logits import Logits, Targets, product_dtype, row_chunks
from foveal.objectives.ranks import ALONE as THIS_PROCESS
from foveal.objectives.ranks import Ranks
from foveal.objectives.sinkhorn import sinkhorn_knopp, softmax_center, updated_center
from foveal.pretrain.network import (
    Batch,
    Network,
    StudentTokens,
    class_tokens,
    masked_patches,
    student_tokens,
    teacher_tokens,
)
from foveal.pretrain.processes.parallel import ALONE, World


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Weights and temperatures of the objective; the defaults are the published ones.

    hide_masked: off, the student sees the patches that the iBOT term reads, as in distillation.
    batch_scope: what Sinkhorn-Knopp balances and where KoLeo looks for neighbours: all images of a step, in whatever
        micro-batches and processes they come, or those of one micro-batch.
    koleo_group: images among which a neighbour is looked for, in the order of the batch; None for all of the scope.
    """

    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    gram_weight: float = 0.0
    hide_masked: bool = True
    centering: Literal["sinkhorn_knopp", "centering"] = "sinkhorn_knopp"
    student_temperature: float = 0.1
    center_momentum: float = 0.9
    batch_scope: Literal["step", "micro_batch"] = "step"
    koleo_group: int | None = None

    def neighbours(self, *, micro_batch: int, step: int) -> int:
        """Return among how many images KoLeo looks for a neighbour, given those of a micro-batch and of a step."""
        return self.koleo_group or (step if self.batch_scope == "step" else micro_batch)


@dataclass
class Centers:
    """EMA centres of the teacher's logits, used by softmax centring: (K,) each, zero at the start.

    A step's targets use the centres from before the step. Its logits are noted, and their mean over all micro-batches
    and processes moves the centres once, when the step is known to be good, so that accumulation does not change them.
    """

    dino: Tensor
    ibot: Tensor
    pending: list[tuple[Logits, Logits]] = field(default_factory=list)
    ranks: Ranks = THIS_PROCESS

    def note(self, dino: Sequence[Logits], ibot: Sequence[Logits], *, ranks: Ranks) -> None:
        """Note the logits of this process's micro-batches in a step that it shares with `ranks`."""
        self.pending += zip(dino, ibot, strict=True)
        self.ranks = ranks

    def commit(self, momentum: float) -> None:
        """Move the centres towards the mean of the logits noted in this step."""
        if self.pending:
            dino, ibot = zip(*self.pending, strict=True)
            self.dino, self.ibot = (
                updated_center(
                    center,
                    torch.stack([part.sum() for part in parts]),
                    [len(part) for part in parts],
                    momentum=momentum,
                    ranks=self.ranks,
                )
                for center, parts in ((self.dino, dino), (self.ibot, ibot))
            )
        self.discard()

    def discard(self) -> None:
        """Forget the logits of a step that did not count."""
        self.pending = []


class MicroTargets(NamedTuple):
    """Targets of one micro-batch: of its global crops (2 B, K), and of the patches that the iBOT term reads (M, K)."""

    dino: Targets
    ibot: Targets


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
    step. The gradients of all processes add up to the step's. In the scope of a step they are those of all its images
    in one forward pass, up to rounding, but for what is drawn by micro-batch (masks, stochastic depth). The teacher
    runs first, and of its outputs only the bottleneck is kept. In the scope of a micro-batch each is a step of its own,
    and the mean counts.

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
            of the global crops; asked where `settings.gram_weight` is not 0.
        world: the processes of the run.

    Returns:
        Detached scalars of the whole step, equal in all processes: loss and its parts, each before its weight:
        dino_local, dino_global, ibot, and koleo and gram where they have a weight.
    """
    targets = teacher_targets(
        teacher, micro_batches, settings=settings, centers=centers, temperature=teacher_temperature, world=world
    )
    return student_gradients(
        student, micro_batches, targets, settings=settings, generators=generators, anchor=anchor, world=world
    )


@torch.no_grad()
def teacher_targets(
    teacher: Network,
    micro_batches: Sequence[Batch],
    *,
    settings: ObjectiveSettings,
    centers: Centers,
    temperature: float,
    world: World = ALONE,
) -> Iterable[MicroTargets]:
    """Run the teacher and give the targets of each micro-batch in turn; arguments as of `accumulate_step`.

    In the scope of a step the teacher has seen all micro-batches before the first is given; in the scope of a
    micro-batch it runs on each when that is asked for. A list of them serves several students.
    """
    if settings.batch_scope == "step":
        return _targets(teacher, micro_batches, settings, centers, temperature, world)
    return (_targets(teacher, [batch], settings, centers, temperature, world)[0] for batch in micro_batches)


@torch.no_grad()
def _targets(
    teacher: Network,
    micro_batches: Sequence[Batch],
    settings: ObjectiveSettings,
    centers: Centers,
    temperature: float,
    world: World,
) -> list[MicroTargets]:
    """Return the targets of micro-batches that are balanced together: with other processes' in the scope of a step."""
    head = teacher.patch_head
    dino_table = teacher.dino_head.prototypes()
    dino_table = dino_table.to(product_dtype(dino_table))
    ibot_table = dino_table if head is teacher.dino_head else head.prototypes().to(dino_table.dtype)
    dino, ibot = list[Logits](), list[Logits]()
    for batch in micro_batches:
        cls, patches = teacher_tokens(teacher, batch)
        dino.append(Logits(teacher.dino_head(cls), dino_table))
        ibot.append(Logits(head(patches), ibot_table))
    if settings.centering == "sinkhorn_knopp":
        ranks = world.ranks if settings.batch_scope == "step" else THIS_PROCESS
        balanced = (sinkhorn_knopp(parts, temperature=temperature, ranks=ranks) for parts in (dino, ibot))
        return [MicroTargets(*pair) for pair in zip(*balanced, strict=True)]
    centers.note(dino, ibot, ranks=world.ranks)
    centred = (
        softmax_center(parts, center=center, temperature=temperature)
        for parts, center in ((dino, centers.dino), (ibot, centers.ibot))
    )
    return [MicroTargets(*pair) for pair in zip(*centred, strict=True)]


def student_gradients(
    student: Network,
    micro_batches: Sequence[Batch],
    targets: Iterable[MicroTargets],
    *,
    settings: ObjectiveSettings,
    generators: Callable[[int], torch.Generator] | None = None,
    anchor: Callable[[Batch], Tensor] | None = None,
    world: World = ALONE,
) -> dict[str, Tensor]:
    """Add the gradient of a step to the student's, given the targets; arguments and result as of `accumulate_step`.

    Where KoLeo looks across micro-batches, its gradient for the class tokens is taken from those of all of them, and
    then put into the backward pass of each (the gradient cache of arXiv 2101.06983). A process with several of them
    therefore runs the student a second time on the global crops of all but the first.
    """
    count, share = len(micro_batches), 1 / (len(micro_batches) * world.size)
    images = len(micro_batches[0].masks) // 2
    group = settings.neighbours(micro_batch=images, step=images * count * world.size)
    across = settings.koleo_weight > 0 and images % group > 0
    anchor = anchor if settings.gram_weight > 0 else None

    def draws(number: int) -> torch.Generator | None:
        return generators(world.rank * count + number) if generators else None

    def tokens_of(number: int) -> StudentTokens:
        return student_tokens(
            student,
            micro_batches[number],
            hide_masked=settings.hide_masked,
            all_patches=anchor is not None,
            generator=draws(number),
        )

    first: StudentTokens | None = None
    pulls, koleo = list[Tensor](), None
    if across:
        # Next to local crops some bits of class tokens differ, so in a canonical run all come without.
        first = None if world.canonical else tokens_of(0)
        cls = [] if first is None else [first.global_cls]
        for number in range(len(cls), count):
            batch = micro_batches[number]
            cls.append(class_tokens(student, batch, hide_masked=settings.hide_masked, generator=draws(number)))
        koleo, pulls = _koleo(cls, settings.koleo_weight, group=group, ranks=world.ranks)
    rows = list[Tensor]()
    for number, target in enumerate(targets):
        tokens, first = first or tokens_of(number), None
        terms = _terms(student, micro_batches[number], tokens, target, settings=settings, anchor=anchor)
        loss = _weighted(terms, settings) * share
        if settings.koleo_weight > 0:
            if not across:
                terms["koleo"], pulls = _koleo([tokens.global_cls], settings.koleo_weight * share, group=group)
            loss = loss + (tokens.global_cls * pulls[number if across else 0]).sum()
        loss.backward()
        rows.append(torch.stack([value.detach() for value in terms.values()]) * share)
    found = dict(zip(terms, world.ranks.sum(torch.stack(rows)).unbind(), strict=True))
    if koleo is not None:
        found["koleo"] = koleo
    return {"loss": _weighted(found, settings)} | found


def _terms(
    student: Network,
    batch: Batch,
    tokens: StudentTokens,
    targets: MicroTargets,
    *,
    settings: ObjectiveSettings,
    anchor: Callable[[Batch], Tensor] | None,
) -> dict[str, Tensor]:
    """Return the terms of one micro-batch that look at one image at a time."""
    num_crops, patches, terms = len(batch.masks), tokens.patches, dict[str, Tensor]()
    if anchor is not None:
        terms["gram"] = gram_loss(patches.unflatten(0, batch.masks.shape), anchor(batch))
        patches = patches.index_select(0, masked_patches(batch))
    features = student.dino_head(torch.cat([tokens.global_cls, tokens.local_cls]))
    prototypes = student.dino_head.prototypes()
    chunks = row_chunks(num_crops, len(prototypes))
    terms["dino_local"], terms["dino_global"] = dino_loss(
        features[:num_crops],
        features[num_crops:],
        prototypes,
        targets=torch.cat([targets.dino(rows) for rows in chunks]),
        num_locals=2 * len(tokens.local_cls) // num_crops,
        student_temperature=settings.student_temperature,
    )
    head = student.patch_head
    terms["ibot"] = ibot_loss(
        head(patches),
        prototypes if head is student.dino_head else head.prototypes(),
        targets=targets.ibot,
        masks=batch.masks,
        student_temperature=settings.student_temperature,
    )
    return terms


def _weighted(terms: Mapping[str, Tensor], settings: ObjectiveSettings) -> Tensor:
    loss = settings.dino_weight * (terms["dino_local"] + terms["dino_global"]) + settings.ibot_weight * terms["ibot"]
    for name, weight in (("koleo", settings.koleo_weight), ("gram", settings.gram_weight)):
        if name in terms:
            loss = loss + weight * terms[name]
    return loss


def _koleo(
    cls: Sequence[Tensor], weight: float, *, group: int, ranks: Ranks = THIS_PROCESS
) -> tuple[Tensor, list[Tensor]]:
    """Return the KoLeo term of class tokens (2 B, D) of micro-batches, and `weight` times its gradient for each."""
    with torch.enable_grad():
        leaves = [tokens.detach().requires_grad_() for tokens in cls]
        first, second = (torch.cat(view) for view in zip(*(leaf.chunk(2) for leaf in leaves), strict=True))
        term = koleo_loss(first, group_size=group, ranks=ranks) + koleo_loss(second, group_size=group, ranks=ranks)
    return term.detach(), list(torch.autograd.grad(weight * term, leaves))


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
