"""The pretraining loop: from a recipe to a run folder with a model in it."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from foveal import __version__
from foveal.backbone.card import Card, read_card, write_card
from foveal.backbone.licence import OWN
from foveal.backbone.variants import BackboneConfig
from foveal.engine.memory import freed_memory_kept
from foveal.errors import DivergedError, ImageSetError, RecipeError, RunError, WeightsError
from foveal.images.imageset import ImageSet
from foveal.images.ledger import BadImageLedger
from foveal.pretrain.checkpoints.export import described_model, export_model
from foveal.pretrain.checkpoints.reader import Checkpoint, checkpoint_path, newest_intact, open_checkpoint
from foveal.pretrain.checkpoints.writer import CheckpointWriter
from foveal.pretrain.data.loader import RawBatch, StepBatches, Waiting, micro_batches
from foveal.pretrain.distillation.learner import build_learner
from foveal.pretrain.guard import IN_A_ROW, Guard
from foveal.pretrain.health.monitor import HealthMonitor
from foveal.pretrain.loggers import Loggers, open_loggers
from foveal.pretrain.optimizer import adamw, clip_each, parameter_groups, set_rates
from foveal.pretrain.planning.ready import device_of, ready_recipe
from foveal.pretrain.probe import KNNProbe
from foveal.pretrain.processes.launch import joined
from foveal.pretrain.processes.parallel import ALONE, GradientSum, World
from foveal.pretrain.processes.sharding import whole_backbone
from foveal.pretrain.recipe import Recipe, check_keys
from foveal.pretrain.replay import write_replay
from foveal.pretrain.run import (
    CHECKPOINTS,
    JUDGEMENTS,
    LEDGER,
    MODEL,
    REPLAY,
    STUDENTS,
    RunFolder,
    differences,
    settings_of,
)
from foveal.pretrain.schedules import scheduled_rates
from foveal.pretrain.start.gate import Gate, Judgement
from foveal.pretrain.start.weights import StartWeights
from foveal.pretrain.step import is_finite
from foveal.signals import caught_signals

OPTIMIZER = "optimizer"  # its file stem in a checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What a listener hears after each step."""

    step: int
    total_steps: int
    images_per_s: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """How a call of `pretrain` ended: the run folder, finished steps, and the signal that stopped it, if one did.

    `judgements` are those of the gate, if there is one; where the last of them failed, the run is over, and its model
    is the last that passed.
    """

    run: Path
    step: int
    stopped_by: int | None
    judgements: tuple[Judgement, ...] = ()


def pretrain(
    recipe: Recipe,
    *,
    stop_after: int | None = None,
    listener: Callable[[Progress], None] | None = None,
    allowed_changes: Collection[str] = (),
) -> Outcome:
    """Pretrain a backbone, or continue a run that was interrupted.

    The next step after an interruption is computed from the newest intact checkpoint; data order, crops, masks and
    stochastic depth are functions of (seed, step), so on one CPU thread the continued run equals the uninterrupted one
    to the last bit. SIGINT, SIGTERM and SIGUSR1 finish the step, save and return; a second one stops at once.

    Args:
        recipe: what to do; `recipe.out` is the run folder.
        stop_after: save and return after so many steps of this call; the schedules do not change.
        listener: called after each step.
        allowed_changes: keys of the recipe, or "images", that may differ from the run's so far; from the next step on
            the new value counts. The model's card says so.

    Raises:
        RunError: the run folder is another run's, or in use.
        RecipeError: settings that do not fit the images or the computer.
        ImageSetError: no images, more unusable ones than `max_bad_share`, or a channel without variation.
        CheckpointError: a checkpoint cannot be written (earlier ones stay) or none is intact.
        DivergedError: steps were not finite again and again; see `foveal.pretrain.guard`.
    """
    check_keys(allowed_changes)
    gpus = recipe.device != "cpu" and torch.cuda.is_available()
    if gpus and recipe.parallel.canonical:
        raise RecipeError("parallel.canonical=true needs device=cpu: a GPU does not add in a fixed order by itself")
    with joined(gpus=gpus, canonical=recipe.parallel.canonical, timeout_s=recipe.parallel.timeout_s) as world:
        images = ImageSet.open(recipe.images)
        recipe, start = ready_recipe(recipe, images, world)
        folder = RunFolder(recipe, images_hash=images.hash, writes=world.is_main, allowed_changes=allowed_changes)
        try:
            world.gather(None)  # a folder that is in use, or another run's, is the first process's to refuse
            trainer = Trainer(recipe, folder=folder, images=images, start=start, world=world)
            trainer.resume()
            with caught_signals() as caught, freed_memory_kept(), trainer.checkpoints:
                return trainer.run(stop_after=stop_after, listener=listener, caught=caught)
        finally:
            folder.close()


def model_card(recipe: Recipe, *, step: int, images_hash: str, backbone: BackboneConfig | None = None) -> Card:
    """Return the card of the model that a recipe makes after `step` steps; of another than its first, `backbone`."""
    crop = recipe.features.crop_size or recipe.views.global_size
    backbone = backbone or recipe.backbone
    return Card(
        name=f"{backbone.variant.partition('#')[0]}/{backbone.patch_size}",
        backbone=backbone,
        mean=list(recipe.channel_mean),
        std=list(recipe.channel_std),
        crop_size=crop,
        resize_size=recipe.features.resize_size or round(crop * 256 / 224),
        licence=OWN,
        lineage={
            "made_by": f"foveal {__version__} pretrain",
            "images": images_hash,
            "steps": step,
            "recipe": recipe.model_dump(mode="json", exclude={"out", "images", "start"}),
        },
    )


class Trainer:
    """The state of one run: networks, optimizer, centres, step."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        folder: RunFolder,
        images: ImageSet,
        start: StartWeights | None = None,
        world: World = ALONE,
    ) -> None:
        self.recipe, self.folder, self.images, self.world = recipe, folder, images, world
        self.device = device_of(recipe)
        self.learner = build_learner(recipe, device=self.device, start=start, world=world)
        self.gradients = GradientSum((p for p in self.learner.student.parameters() if p.requires_grad), world)
        self.optimizer = adamw(
            parameter_groups(
                self.learner.student,
                layer_decay=recipe.optimizer.layer_decay,
                patch_embed_lr_multiplier=recipe.optimizer.patch_embed_lr_multiplier,
            ),
            betas=(recipe.optimizer.beta1, recipe.optimizer.beta2),
        )
        self.ledger = (
            BadImageLedger(folder.path / LEDGER, num_images=len(images), max_bad_share=recipe.max_bad_share)
            if world.is_main
            else None
        )
        self.probe = KNNProbe(recipe.knn, device=self.device) if recipe.knn and world.is_main else None
        self.gate = None
        self.checkpoints = CheckpointWriter(
            folder.path / CHECKPOINTS,
            keep=recipe.checkpoints.keep,
            every_steps=recipe.checkpoints.every_steps,
            world=world,
            then=self._write_models,
        )
        self.health = (
            HealthMonitor(recipe, run=folder.path, images=images, device=self.device)
            if recipe.health and world.is_main
            else None
        )
        self.step = 0
        self.saved: int | None = None  # step of the newest checkpoint
        self.guard = Guard()
        self.loggers = Loggers({})
        self.changes: list[dict[str, Any]] = []  # of the recipe, on purpose: from which step on, and what
        if recipe.gate and world.is_main:
            self.gate = Gate(
                recipe.gate,
                images=images,
                backbone=self.learner.result.backbone,
                card=self.card(),
                probe=self.probe,
                path=folder.path / JUDGEMENTS,
                device=self.device,
            )

    def resume(self) -> None:
        """Continue from the newest intact checkpoint, if there is one."""
        found = newest_intact(self.folder.path / CHECKPOINTS, world=self.world)
        if found is not None:
            self._restore(found)
            self.step = self.saved = found.step
            state = found.state()
            self.guard.restore(state)
            self.changes = state["changes"]
            if changed := differences(state["settings"], self._settings()):
                self.changes.append({"step": self.step, "changed": changed})
                text = "; ".join(f"{key} was {old}, is {new}" for key, (old, new) in changed.items())
                logger.info("from step %d on: %s", self.step, text)
            logger.info("continuing %s at step %d", self.folder.path, self.step)
        if self.world.is_main:
            self.folder.keep_metrics_before(self.step)
        if self.gate is not None:
            self.gate.forget_after(self.step)
        if self.health:
            self.health.begin(self.step)

    def run(self, *, stop_after: int | None, listener: Callable[[Progress], None] | None, caught: list[int]) -> Outcome:
        """Train until the last step, `stop_after` steps, or a signal; save; return how it ended."""
        recipe = self.recipe
        last = min(recipe.total_steps, self.step + stop_after) if stop_after else recipe.total_steps
        raw = Waiting(iter(micro_batches(self.images, recipe, steps=range(self.step, last), world=self.world)))
        per_process = len(self.world.part(recipe.batch_size // recipe.micro_batch))
        saved, stopped_by = None, 0
        if self.world.is_main:
            self.loggers = open_loggers(recipe, run=self.folder.path, step=self.step)
        if self.step == 0:
            if recipe.knn:
                self.folder.log({"step": -1, **self._probed()})
            if recipe.health:
                self._measure_health()
        ended = any(self.world.agree(self.gate is not None and self.gate.failed is not None))
        if recipe.gate and not ended:
            self.save()  # the start is the first model that passed; later, what a crash has left out
        try:
            while self.step < last and not ended:
                stopped_by, failed = self.world.agree(caught[0] if caught else 0, self.checkpoints.failed)
                if failed and self.saved != self.step:
                    self.save()
                    saved = self.step
                if stopped_by:
                    break
                started, waited = time.perf_counter(), raw.seconds
                metrics = self.train_step(islice(raw, per_process))
                elapsed = time.perf_counter() - started
                metrics |= {
                    "images_per_s": recipe.batch_size / elapsed,
                    "data_wait": (raw.seconds - waited) / elapsed,
                }
                self.step += 1
                self._report(metrics, logged=self.step == last, listener=listener)
                if ended := not self._passes_gate():
                    break
                if self.step % recipe.checkpoints.every_steps == 0 or self._is_judged():
                    self.save()
                    saved = self.step
        finally:
            del raw  # ends the workers now, not when somebody lets go of an exception's traceback
            self.loggers.close()
        if saved != self.step and not ended:
            self.save()
        if self.health:
            self.health.end(self.step, reason="stopped" if self.step < recipe.total_steps else "finished")
        return Outcome(
            self.folder.path, self.step, stopped_by or None, tuple(self.gate.judgements) if self.gate else ()
        )

    def _is_judged(self) -> bool:
        gate = self.recipe.gate
        return gate is not None and (self.step % gate.every_steps == 0 or self.step == self.recipe.total_steps)

    def _passes_gate(self) -> bool:
        """Judge the features when it is time; where they fail, say so in the card of the model, which stays."""
        if not self._is_judged():
            return True
        failed, step = False, self.step
        if self.gate is not None:
            judgement = self.gate.judge(self.learner.result.backbone, self.card(), step=step)
            failed = bool(judgement.failed)
            if failed:
                logger.warning("step %d: %s; the model is that of step %d", step, judgement.failed, self.gate.passed)
                self.checkpoints.wait()
                model = self.folder.path / MODEL
                card = read_card(model)
                write_card(model, card.model_copy(update={"lineage": {**card.lineage, "gate": self.gate.lineage()}}))
        return not any(self.world.agree(failed))

    def _report(self, metrics: dict[str, float], *, logged: bool, listener: Callable[[Progress], None] | None) -> None:
        """Measure kNN when it is time, write the step's metrics down when it is time, and tell the listener."""
        recipe = self.recipe
        if recipe.knn and (self.step % recipe.knn.every_steps == 0 or self.step == recipe.total_steps):
            metrics |= self._probed()
        changed = [change["changed"] for change in self.changes if change["step"] == self.step - 1]
        logged = logged or bool(changed) or "knn" in metrics or "skipped" in metrics
        if logged or self.step % recipe.log_every_steps == 0:
            noted = {"changed": changed[-1]} if changed else {}
            self.folder.log({"step": self.step - 1, **metrics, **noted})
            self.loggers.log(self.step - 1, metrics)
        if recipe.health and (self.step % recipe.health.every_steps == 0 or self.step == recipe.total_steps):
            self._measure_health()
        if listener and self.world.is_main:
            listener(Progress(self.step, recipe.total_steps, metrics["images_per_s"], metrics))

    def _probed(self) -> dict[str, float]:
        """Return what the probe says of the result, and of further ones with their name behind."""
        found = dict[str, float]()
        for name, network in {"": self.learner.result, **self.learner.others}.items():
            backbone = whole_backbone(network.backbone)  # every process takes part
            if self.probe:
                metrics = self.probe(backbone, self.card(backbone.config))
                found |= {f"{key}_{name}" if name else key: value for key, value in metrics.items()}
        return found

    def _measure_health(self) -> None:
        backbone = whole_backbone(self.learner.result.backbone)  # every process takes part
        if self.health:
            temperature = self.rates(self.step)["teacher_temperature"]
            numbers = self.health.update(
                self.step, learner=self.learner, backbone=backbone, card=self.card(), temperature=temperature
            )
            self.loggers.log(self.step, {f"health/{name}": value for name, value in numbers.items()})

    def train_step(self, raw: Iterable[RawBatch]) -> dict[str, float]:
        """Run one optimizer update on the micro-batches of a step; nothing changes when it is not finite."""
        rates = self.rates(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        micros = list(raw)
        self._record_bad(micros)
        batches = StepBatches(micros, mean=self.recipe.channel_mean, std=self.recipe.channel_std, device=self.device)
        losses = self.learner.accumulate(batches, step=self.step, rates=rates)
        self.gradients.add_up()
        norms = clip_each(self.learner.student, self.recipe.optimizer.clip)
        metrics = {name: value.item() for name, value in losses.items()}
        metrics |= {f"grad_norm_{name}": value.item() for name, value in norms.items()} | rates
        if not is_finite(losses, norms):
            return metrics | {"skipped": 1.0} | self._skip(metrics)
        set_rates(
            self.optimizer,
            lr=rates["lr"],
            weight_decay=rates["weight_decay"],
            last_layer_lr=rates["last_layer_lr"],
            backbone_lr=rates["backbone_lr"],
        )
        self.optimizer.step()
        self.learner.commit(rates)
        return metrics

    def _record_bad(self, micros: Sequence[RawBatch]) -> None:
        """Write the replaced images of all processes down; ImageSetError when they are too many, or none is left."""
        bad = [entry for micro in micros for entry in micro.bad]
        failure = next((micro.failure for micro in micros if micro.failure), "")
        if not any(self.world.agree(len(bad), bool(failure))):
            return
        everyones = self.world.gather([bad, failure])
        if self.ledger is not None:
            try:
                for number, reason, message in (entry for entries, _ in everyones for entry in entries):
                    self.ledger.record(self.images.uri(number), reason=reason, message=message)
            except OSError as error:
                raise RunError(
                    f"cannot write {self.ledger.path}: {error}; make room and run the same command again"
                ) from error
        for _, failure in everyones:
            if failure:
                raise ImageSetError(f"{failure}; repair the images, see {self.folder.path / LEDGER}")

    def _skip(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Forget a step that is not finite, and go back where the guard says so; return what the metrics say of it."""
        self.optimizer.zero_grad(set_to_none=True)
        self.learner.discard()
        if not self.guard.skip(self.step):
            return {}
        among = self.guard.ways_back(self.step, every_steps=self.recipe.checkpoints.every_steps)
        self.checkpoints.wait()
        found = newest_intact(self.folder.path / CHECKPOINTS, among=among, world=self.world)
        if found is None:
            self._give_up(metrics)
        self._restore(found)
        self.guard.go_back(found.step, step=self.step)
        return {"went_back_to": found.step}

    def _give_up(self, metrics: Mapping[str, float]) -> NoReturn:
        path = self.folder.path / REPLAY / f"step_{self.step:08d}.safetensors"
        rates = self.rates(self.step)
        measured = {name: value for name, value in metrics.items() if name not in rates}
        write_replay(
            path,
            recipe=self.recipe,
            images=self.images,
            learner=self.learner,
            step=self.step,
            rates=rates,
            measured=measured,
            is_main=self.world.is_main,
        )
        if self.health:
            self.health.end(self.step, reason="gave up: steps were not finite again and again")
        before = " again, after the run had gone back once" if self.guard.undone else ""
        raise DivergedError(
            f"{IN_A_ROW} steps in a row up to {self.step} were not finite{before}, and there is no other checkpoint to "
            f"go back to. `foveal replay {path}` shows where it begins; then start again with a lower "
            "optimizer.base_lr, or precision=fp32"
        )

    def rates(self, step: int) -> dict[str, float]:
        """Return every scheduled value of a step."""
        return scheduled_rates(self.recipe, step)

    def card(self, backbone: BackboneConfig | None = None) -> Card:
        """Return the card of the model as it is now; of a further result, by its `backbone`."""
        card = model_card(self.recipe, step=self.step, images_hash=self.images.hash, backbone=backbone)
        if self.changes:
            card = card.model_copy(update={"lineage": card.lineage | {"changes": self.changes}})
        card = self.learner.describe(card)
        if self.gate is not None:
            card = card.model_copy(update={"lineage": {**card.lineage, "gate": self.gate.lineage()}})
        return card

    def _settings(self) -> dict[str, Any]:
        return settings_of(self.recipe, images_hash=self.images.hash)

    def save(self) -> None:
        """Begin to write a checkpoint and then its model folders; just those where the checkpoint is there already."""
        if self.saved == self.step:
            self.checkpoints.wait()
            if self.world.is_main:
                self._write_models(checkpoint_path(self.folder.path / CHECKPOINTS, step=self.step))
            return
        learner = self.learner
        results = {MODEL: described_model(self.card(), stem=learner.result_stem(MODEL), lora=self.recipe.lora)}
        for name, network in learner.others.items():
            card = self.card(network.backbone.config)
            results[f"{STUDENTS}/{name}"] = described_model(card, stem=learner.result_stem(name))
        state = {**self.guard.state(), "models": results, "settings": self._settings(), "changes": self.changes}
        self.checkpoints.save(self.step, tensors=self._tensors(), state=state)
        self.saved = self.step

    def _write_models(self, path: Path) -> None:
        """Write the model folders of a finished checkpoint, so that both are of one step, as are the metrics."""
        self.folder.sync_metrics()
        checkpoint = open_checkpoint(path)
        if self.gate is not None and not self.gate.has_passed(checkpoint.step):
            return
        try:
            for place in checkpoint.state()["models"]:
                export_model(checkpoint, self.folder.path / place, model=place)
        except WeightsError as error:
            raise RunError(
                f"{error}. The checkpoint of step {checkpoint.step} is safe: run the same command again"
            ) from error

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        optimizer = {
            f"{name}.{key}": value
            for name, parameter in self.learner.student.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        return self.learner.tensors() | {OPTIMIZER: optimizer}

    def _restore(self, found: Checkpoint) -> None:
        like = self.learner.tensors()
        stems = [stem for stem in found.tensors if stem != OPTIMIZER]
        self.learner.restore({stem: found.read(stem, like=like.get(stem)) for stem in stems}, where=str(found.path))
        parameters = dict(self.learner.student.named_parameters())
        owners = {name: parameters[name.rpartition(".")[0]] for name in found.tensors[OPTIMIZER]}
        self.optimizer.state.clear()  # of a step that went wrong
        for name, value in found.read(OPTIMIZER, like=owners).items():
            self.optimizer.state[owners[name]][name.rpartition(".")[2]] = value.to(self.device)
