"""Distillation: students learn from a frozen teacher, in the same loop and with the same guarantees as pretraining."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from foveal.backbone.card import Card, inherit
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.weights import check_tensors
from foveal.errors import RunError
from foveal.pretrain.distillation.features import FeatureObjective, FeatureStudent
from foveal.pretrain.distillation.foreign import begun_from
from foveal.pretrain.distillation.heads import HeadObjective
from foveal.pretrain.distillation.teacher import Teacher
from foveal.pretrain.learner import Learner, Result, SelfDistillation, depth_generator
from foveal.pretrain.network import Batch, Network
from foveal.pretrain.processes.parallel import ALONE, World
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.run import MODEL
from foveal.pretrain.start.weights import StartWeights, inherited_card, load_start
from foveal.pretrain.step import EMA

Student = Network | FeatureStudent


class Objective(Protocol):
    """What students are taught, and what of it must outlive an interruption."""

    def network(self, backbone: BackboneConfig) -> Student:
        """Return an untrained student: the backbone and what the objective puts on it."""
        ...

    def accumulate(
        self,
        students: Mapping[str, Any],
        micro_batches: Sequence[Batch],
        *,
        rates: Mapping[str, float],
        generators: Callable[[int], torch.Generator],
        world: World,
    ) -> dict[str, dict[str, Tensor]]:
        """Add a step's gradients to each student's; return the detached losses of each, the sum as "loss"."""
        ...

    def commit(self, rates: Mapping[str, float]) -> None:
        """Keep what `accumulate` noted: the step counts."""
        ...

    def discard(self) -> None:
        """Forget what `accumulate` noted."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the objective's own state."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state of a checkpoint."""
        ...


class Distillation:
    """Learner of one or several students of a frozen teacher (arXiv 2304.07193, section 5).

    The moving average of a student becomes its model; training never reads it. The teacher is not part of a
    checkpoint: its identity is, and another teacher is refused when the run continues.

    Raises:
        RecipeError: the recipe and the teacher do not fit each other.
        WeightsError: the teacher's weights or heads are missing, damaged, or do not fit each other.
    """

    def __init__(
        self, recipe: Recipe, *, device: torch.device, world: World = ALONE, start: StartWeights | None = None
    ) -> None:
        assert recipe.distill is not None
        self.recipe, self.device, self.world, self._start = recipe, device, world, start
        self.teacher = Teacher(
            recipe.distill.teacher,
            mean=recipe.channel_mean,
            std=recipe.channel_std,
            device=device,
            precision=recipe.precision,
        )
        objective = HeadObjective if recipe.distill.objective == "heads" else FeatureObjective
        self.objective: Objective = objective(recipe, teacher=self.teacher, device=device)
        self.students = {
            name: self._untrained(config)
            for name, config in {MODEL: recipe.backbone, **recipe.distill.students}.items()
        }
        if start is not None:
            # All that is asked of it is a backbone and children of which those with known names are heads.
            self._new = load_start(cast(Network, self.students[MODEL]), start, seed=recipe.seed)
        _check_sizes(recipe, self.students)
        self.averages = {name: self._average(network) for name, network in self.students.items()}
        self.student, self.average = _together(self.students), _together(self.averages)
        self.ema = EMA(self.average, self.student)
        self._buffers = [buffer.clone() for buffer in self.student.buffers()]

    def _untrained(self, backbone: BackboneConfig) -> Student:
        network = self.objective.network(backbone).init_weights(torch.Generator().manual_seed(self.recipe.seed))
        return network.to(self.device)

    def _average(self, student: Student) -> Student:
        average = self._untrained(student.backbone.config)
        average.load_state_dict(student.state_dict())
        return average.requires_grad_(False).eval()

    @property
    def result(self) -> Student:
        """The moving average of the first student."""
        return self.averages[MODEL]

    @property
    def others(self) -> dict[str, Result]:
        """The moving averages of further students."""
        return {name: network for name, network in self.averages.items() if name != MODEL}

    def result_stem(self, name: str) -> str:
        """See `Learner`."""
        return "average" if name == MODEL else f"average_{name}"

    def describe(self, card: Card) -> Card:
        """Return the card with the teacher among the parents, and the strictest of their licences."""
        begun = {parent.name: parent for network in self.students.values() for parent in begun_from(network)}
        own = begun.get(card.backbone.variant)
        card = inherit(card, [self.teacher.card, *([own] if own else [])])
        return card if self._start is None else inherited_card(card, self._start, new=self._new)

    def accumulate(self, micro_batches: Sequence[Batch], *, step: int, rates: Mapping[str, float]) -> dict[str, Tensor]:
        """See `Learner`; the losses of further students have their name behind."""
        self._buffers = [buffer.clone() for buffer in self.student.buffers()]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            found = self.objective.accumulate(
                self.students,
                micro_batches,
                rates=rates,
                generators=lambda number: depth_generator(self.recipe.seed, step=step, number=number),
                world=self.world,
            )
        losses = {
            key if name == MODEL else f"{key}_{name}": value
            for name, terms in found.items()
            for key, value in terms.items()
        }
        return losses | {"loss": torch.stack([terms["loss"] for terms in found.values()]).sum()}

    def commit(self, rates: Mapping[str, float]) -> None:
        """Move the averages, and what the objective keeps; buffers (of batch norm) are the student's own."""
        self.objective.commit(rates)
        self.ema.update(rates["teacher_momentum"])
        for average, own in zip(self.average.buffers(), self.student.buffers(), strict=True):
            average.copy_(own)

    def discard(self) -> None:
        """See `Learner`; buffers go back to what they were before the step."""
        self.objective.discard()
        for own, before in zip(self.student.buffers(), self._buffers, strict=True):
            own.copy_(before)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """See `Learner`; "teacher" holds its identity and the objective's state."""
        identity = torch.frombuffer(bytearray.fromhex(self.teacher.identity), dtype=torch.uint8)
        return {
            "student": dict(self.student.state_dict()),
            "teacher": {"identity": identity, **self.objective.tensors()},
            **{self.result_stem(name): dict(network.state_dict()) for name, network in self.averages.items()},
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], *, where: str) -> None:
        """See `Learner`; RunError where the teacher is not the one that the run began with."""
        state = dict(tensors["teacher"])
        before = bytes(state.pop("identity").tolist()).hex()
        if before != self.teacher.identity:
            raise RunError(
                f"{self.recipe.distill and self.recipe.distill.teacher} is not the teacher that {where} began with "
                f"(identity {before[:12]}, now {self.teacher.identity[:12]}); give that one, or another out="
            )
        self.objective.restore(state)
        networks = {"student": self.student} | {self.result_stem(name): n for name, n in self.averages.items()}
        for stem, network in networks.items():
            network.load_state_dict(check_tensors(dict(tensors[stem]), network.state_dict(), where=where))


def _check_sizes(recipe: Recipe, students: Mapping[str, Student]) -> None:
    """Raise FovealError before the first step where a student cannot take the crops."""
    views = recipe.views
    for size in [views.global_size, *([views.local_size] if views.num_local else [])]:
        crops = torch.empty(1, recipe.backbone.channels, size, size, device="meta")
        for student in students.values():
            student.backbone.grid_of(crops)


class _Together(nn.Module):
    """Networks as one: the parts of the first under their own names, those of each other with its name before them."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, network in networks.items():
            for part, module in network.named_children():
                self.add_module(part if name == MODEL else f"{name}_{part}", module)


def _together(networks: Mapping[str, nn.Module]) -> nn.Module:
    return _Together(networks) if len(networks) > 1 else next(iter(networks.values()))


def build_learner(
    recipe: Recipe, *, device: torch.device, world: World = ALONE, start: StartWeights | None = None
) -> Learner:
    """Return what a recipe asks to be learned: from a frozen teacher, or from the moving average."""
    if recipe.distill:
        return Distillation(recipe, device=device, world=world, start=start)
    return SelfDistillation(recipe, device=device, world=world, start=start)
