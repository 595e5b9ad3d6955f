"""What learns in a run, behind one seam: the loop brings batches and decides whether their gradients count."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from foveal.backbone.card import Card
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import check_tensors
from foveal.pretrain.network import Batch, Network
from foveal.pretrain.planning.cost import batch_scope_flops, step_flops
from foveal.pretrain.processes.parallel import ALONE, World
from foveal.pretrain.processes.sharding import lay_out
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.start.anchor import GramAnchor
from foveal.pretrain.start.lora import add_low_rank, merged
from foveal.pretrain.start.weights import StartWeights, inherited_card, load_start
from foveal.pretrain.step import EMA, Centers, accumulate_step

logger = logging.getLogger(__name__)

_DEPTH_STREAM = 3  # keeps the draws of stochastic depth apart from those of views and masks


class Result(Protocol):
    """A network that becomes a model folder: a backbone, and perhaps heads, whose names end in "_head"."""

    backbone: VisionTransformer

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        ...


class Learner(Protocol):
    """The networks of a run and their objective.

    A step is `accumulate`, then either `commit`, after the optimizer has moved the student, or `discard`, where a loss
    or a gradient was not finite. Between `accumulate` and `commit` nothing changes but gradients, so that a discarded
    step leaves every tensor as it was.
    """

    @property
    def student(self) -> nn.Module:
        """What is trained; the gradient of each child is clipped on its own."""
        ...

    @property
    def result(self) -> Result:
        """The network that becomes the model folder."""
        ...

    @property
    def others(self) -> Mapping[str, Result]:
        """Further results, by name; each becomes a model folder of its own."""
        ...

    def result_stem(self, name: str) -> str:
        """Return which file stem of `tensors` holds `result`, under the name MODEL, or one of `others`."""
        ...

    def accumulate(self, micro_batches: Sequence[Batch], *, step: int, rates: Mapping[str, float]) -> dict[str, Tensor]:
        """Add the gradients of a step's micro-batches to the student's; return detached losses, the sum as "loss".

        The gradients of all processes add up to the step's; the losses are the step's in each of them.
        """
        ...

    def commit(self, rates: Mapping[str, float]) -> None:
        """Let what follows the student follow it: called after the optimizer's update."""
        ...

    def discard(self) -> None:
        """Forget what `accumulate` noted: the step does not count."""
        ...

    def describe(self, card: Card) -> Card:
        """Return the card of a result with what the run took from other models: parents, licence, lineage."""
        ...

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all tensors of a checkpoint but the optimizer's: file stem -> name -> tensor."""
        ...

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], *, where: str) -> None:
        """Take over the tensors of a checkpoint; WeightsError, naming `where`, if they do not fit."""
        ...


def build_networks(recipe: Recipe, device: torch.device | str = "cpu") -> tuple[Network, Network]:
    """Return the untrained student and teacher of a recipe: equal weights drawn from its seed, the teacher frozen."""
    ibot = recipe.heads.ibot.size() if recipe.heads.ibot else None
    student, teacher = (Network(recipe.backbone, dino=recipe.heads.dino.size(), ibot=ibot) for _ in range(2))
    student.init_weights(torch.Generator().manual_seed(recipe.seed))
    teacher.load_state_dict(student.state_dict())
    return student.to(device), teacher.to(device).requires_grad_(False).eval()


class SelfDistillation:
    """DINOv2's pretraining (arXiv 2304.07193, section 4): the teacher is the moving average of the student.

    With a start, both begin with its weights.
    """

    def __init__(
        self, recipe: Recipe, *, device: torch.device, world: World = ALONE, start: StartWeights | None = None
    ) -> None:
        self.recipe, self.device, self.world, self._start = recipe, device, world, start
        _say_what_the_scope_costs(recipe, world)
        self.student, self.teacher = build_networks(recipe, device)
        if start is not None:
            self._new = load_start(self.student, start, seed=recipe.seed)
            self.teacher.load_state_dict(self.student.state_dict())
        if recipe.lora is not None:
            for network in (self.student, self.teacher):
                add_low_rank(
                    network.backbone,
                    rank=recipe.lora.rank,
                    alpha=recipe.lora.alpha,
                    generator=torch.Generator().manual_seed(recipe.seed),
                )
            self.teacher.requires_grad_(False)
        self.anchor = GramAnchor(recipe.gram, teacher=self.teacher.backbone) if recipe.gram else None
        for network in (self.student, self.teacher):
            lay_out(network, recipe, device=device, world=world)
        self._trained = [p for p in self.student.backbone.parameters() if p.requires_grad]
        self.ema = EMA(self.teacher, self.student)
        ibot = recipe.heads.ibot or recipe.heads.dino
        self.centers = Centers(
            torch.zeros(recipe.heads.dino.num_prototypes, device=device),
            torch.zeros(ibot.num_prototypes, device=device),
        )

    @property
    def result(self) -> Network:
        """The teacher, low-rank changes merged into its weights."""
        return merged(self.teacher)

    @property
    def others(self) -> dict[str, Result]:
        """None."""
        return {}

    def result_stem(self, name: str) -> str:
        """See `Learner`."""
        return "teacher"

    def accumulate(self, micro_batches: Sequence[Batch], *, step: int, rates: Mapping[str, float]) -> dict[str, Tensor]:
        """See `Learner`."""
        recipe, settings = self.recipe, self.recipe.objective.settings()
        trained = step >= recipe.optimizer.freeze_backbone_steps
        for parameter in self._trained:  # frozen at first, so that new heads do not pull good features apart
            parameter.requires_grad_(trained)
        if not trained:  # its gradient would reach nothing, and its second pass takes time
            settings = replace(settings, koleo_weight=0.0)
        if self.anchor is not None:
            self.anchor.follow(step)
            settings = replace(settings, gram_weight=self.anchor.weight_at(step))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            return accumulate_step(
                self.student,
                self.teacher,
                micro_batches,
                settings=settings,
                centers=self.centers,
                teacher_temperature=rates["teacher_temperature"],
                generators=lambda number: depth_generator(recipe.seed, step=step, number=number),
                anchor=self.anchor,
                world=self.world,
            )

    def commit(self, rates: Mapping[str, float]) -> None:
        """Move the centres and the teacher."""
        self.centers.commit(self.recipe.objective.center_momentum)
        self.ema.update(rates["teacher_momentum"])

    def discard(self) -> None:
        """Forget the logits noted for the centres."""
        self.centers.discard()

    def describe(self, card: Card) -> Card:
        """See `Learner`."""
        return card if self._start is None else inherited_card(card, self._start, new=self._new)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """See `Learner`; the centres are with the teacher."""
        centers = {"centers.dino": self.centers.dino, "centers.ibot": self.centers.ibot}
        found = {"student": dict(self.student.state_dict()), "teacher": dict(self.teacher.state_dict()) | centers}
        if self.anchor is not None and (copied := self.anchor.tensors()):
            found["anchor"] = copied
        return found

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], *, where: str) -> None:
        """See `Learner`."""
        teacher = dict(tensors["teacher"])
        self.centers = Centers(
            dino=teacher.pop("centers.dino").to(self.device), ibot=teacher.pop("centers.ibot").to(self.device)
        )
        student = dict(tensors["student"])
        self.student.load_state_dict(check_tensors(student, self.student.state_dict(), where=where))
        self.teacher.load_state_dict(check_tensors(teacher, self.teacher.state_dict(), where=where))
        if self.anchor is not None:
            self.anchor.restore(tensors.get("anchor", {}), where=where)


def _say_what_the_scope_costs(recipe: Recipe, world: World) -> None:
    """Tell once what targets and neighbours over the whole step cost, where a step is several micro-batches."""
    if recipe.objective.batch_scope == "step":
        plain = sum(step_flops(recipe).values())
        added = {name: 100 * flops / plain for name, flops in batch_scope_flops(recipe, num_devices=world.size).items()}
        if any(added.values()) and world.is_main:
            parts = ", ".join(f"{name} {percent:.1f} %" for name, percent in added.items() if percent)
            logger.info(
                "targets and neighbours over all %d images of a step cost %s more operations; "
                "objective.batch_scope=micro_batch takes them from %d images at no cost",
                recipe.batch_size,
                parts,
                recipe.micro_batch,
            )


def depth_generator(seed_of_run: int, *, step: int, number: int) -> torch.Generator:
    """Return the source of the stochastic-depth draws of micro-batch `number` of a step."""
    key = (seed_of_run, _DEPTH_STREAM, step, number)
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(seed)
