"""Fine-tuning: from a model, a head and labelled pictures to a new model with its head; it goes on at any step."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from foveal import __version__
from foveal.backbone.card import Card
from foveal.backbone.licence import OWN
from foveal.backbone.weights import load_model
from foveal.engine.identity import identity_of
from foveal.engine.memory import freed_memory_kept
from foveal.errors import DivergedError
from foveal.finetune.data import Batch, Batches
from foveal.finetune.folder import HEAD, FinetuneFolder
from foveal.finetune.network import Network, low_rank
from foveal.finetune.settings import FinetuneSettings
from foveal.images.preprocess import sides
from foveal.pretrain.checkpoints.export import described_model, export_model
from foveal.pretrain.checkpoints.reader import Checkpoint, newest_intact
from foveal.pretrain.checkpoints.writer import CheckpointWriter
from foveal.pretrain.learner import depth_generator
from foveal.pretrain.loop import OPTIMIZER, Outcome, Progress
from foveal.pretrain.optimizer import adamw, parameter_groups, set_rates
from foveal.pretrain.run import CHECKPOINTS, MODEL
from foveal.pretrain.start.weights import StartWeights, inherited_card
from foveal.signals import caught_signals
from foveal.tasks.depth import WARM_UP_STEPS
from foveal.tasks.fit import loss_of
from foveal.tasks.head import Head, HeadCard, build_network, save_head
from foveal.tasks.protocols import learning_rate_at

NETWORK = "network"  # its file stem in a checkpoint
_KEEP = 2
_FREE = {"save_every_s", "recompute"}  # settings that no number depends on, so that they may change

logger = logging.getLogger(__name__)


def new_head(card: HeadCard, *, seed: int) -> Head:
    """Return a head with weights as drawn from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Head(build_network(card), card)


def finetune(
    start: StartWeights,
    head: Head,
    data: Batches,
    settings: FinetuneSettings,
    *,
    out: Path,
    device: torch.device | None = None,
    listener: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Train a backbone and a head together, or go on with a run that was interrupted.

    At the end RUN/model is a model folder, whose licence and parents are the start's, and RUN/head the head on it.
    Batches, stochastic depth and rates are functions of (seed, step), so on one CPU thread a run that goes on equals
    the uninterrupted one to the last bit. A checkpoint is written every `settings.save_every_s` seconds, and when
    SIGINT, SIGTERM or SIGUSR1 asks for the end: after the step that was begun.

    Args:
        start: the backbone; its weights are changed.
        head: a new one, or one that was fitted on the start.
        data: train pictures.
        settings: see there.
        out: the run folder.
        device: of the networks; None is the CPU.
        listener: called after each step.

    Raises:
        FovealError: settings that do not fit the backbone, or a head that does not fit the pictures.
        ImageSetError: no target that was looked at has anything to learn from.
        RunError: the run folder is another run's, or in use.
        BadImageError: a picture or a target that cannot be used.
        CheckpointError: a checkpoint cannot be written (earlier ones stay) or none is intact.
        DivergedError: a loss or a gradient that is not finite; the newest checkpoint stays.
    """
    decisive = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    what = {
        "task": head.card.task,
        "kind": head.card.lineage.get("kind", head.card.architecture),
        "answers": head.card.settings,
        "model": start.identity,
        "head": sha256(save({n: v.contiguous() for n, v in head.network.state_dict().items()})).hexdigest(),
        "data": data.hash,
    }
    data.check(head.card)
    network = Network(start.backbone, head, settings)
    folder = FinetuneFolder(out, what | decisive)
    try:
        run = FinetuneRun(network.to(device or "cpu"), start, data, settings, folder=folder)
        run.resume()
        with caught_signals() as caught, freed_memory_kept(), run.checkpoints:
            return run.train(caught, listener=listener)
    finally:
        folder.close()


def _loss(card: HeadCard, settings: FinetuneSettings) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return the loss as a function of what the head says, targets and the step."""
    if card.task == "classification":
        return lambda found, labels, step: F.cross_entropy(found, labels, label_smoothing=settings.label_smoothing)
    return loss_of(card, warm_up=min(WARM_UP_STEPS, settings.steps // 10))


class FinetuneRun:
    """The state of one run: networks, optimizer, step."""

    def __init__(
        self,
        network: Network,
        start: StartWeights,
        data: Batches,
        settings: FinetuneSettings,
        *,
        folder: FinetuneFolder,
    ) -> None:
        self.network, self.start, self.data, self.settings, self.folder = network, start, data, settings, folder
        self.device = network.backbone.pos_embed.device
        groups = parameter_groups(network, layer_decay=settings.layer_decay, patch_embed_lr_multiplier=1.0)
        self.optimizer = adamw(groups, betas=(0.9, settings.beta2))
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.loss = _loss(network.card, settings)
        self.checkpoints = CheckpointWriter(folder.path / CHECKPOINTS, keep=_KEEP)
        self.step = 0
        self.saved: int | None = None

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        found = newest_intact(self.folder.path / CHECKPOINTS)
        if found is not None:
            self._restore(found)
            self.step = self.saved = found.step
            logger.info("continuing %s at step %d", self.folder.path, self.step)
        self.folder.metrics.open(self.step)

    def train(self, caught: list[int], *, listener: Callable[[Progress], None] | None) -> Outcome:
        """Train until the last step or a signal; save; at the end write the model and its head."""
        last_saved = time.monotonic()
        with closing(self.data.of(range(self.step, self.settings.steps))) as batches:
            while self.step < self.settings.steps and not caught:
                started = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - started
                metrics = self.train_step(batch)
                elapsed = time.perf_counter() - started
                metrics |= {"images_per_s": self.settings.batch_size / elapsed, "data_wait": waited / elapsed}
                self.folder.metrics.log({"step": self.step, **metrics})
                self.step += 1
                if time.monotonic() - last_saved >= self.settings.save_every_s:
                    self.save()
                    last_saved = time.monotonic()
                if listener:
                    listener(Progress(self.step, self.settings.steps, metrics["images_per_s"], metrics))
        self.save()
        if self.step == self.settings.steps:
            self.export()
        return Outcome(self.folder.path, self.step, caught[0] if caught else None)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Make one optimizer update; DivergedError where it is not finite, before any weight changes."""
        settings = self.settings
        generator = depth_generator(settings.seed, step=self.step, number=0)
        found = self.network(batch.images.to(self.device), generator=generator)
        loss = self.loss(found, batch.targets.to(self.device), self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if settings.clip is None else settings.clip)
        rate = learning_rate_at(self.step, settings)
        metrics = {"loss": loss.item(), "grad_norm": norm.item(), "lr": rate}
        if not all(map(math.isfinite, metrics.values())):
            self._give_up(metrics)
        head_rate = rate * settings.head_multiplier
        set_rates(
            self.optimizer,
            lr=head_rate,
            weight_decay=settings.weight_decay,
            last_layer_lr=head_rate,
            backbone_lr=rate,
        )
        self.optimizer.step()
        return metrics

    def _give_up(self, metrics: dict[str, float]) -> None:
        self.checkpoints.wait()
        kept = f"the state after step {self.saved} is kept in {self.folder.path}; " if self.saved else ""
        precision = ", or with precision fp32" if self.network.reduced else ""
        raise DivergedError(
            f"step {self.step} is not finite: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; {kept}"
            f"start again in another folder with a lower learning rate{precision}, or with a warm-up"
        )

    def save(self) -> None:
        """Begin to write a checkpoint, unless there is one of this step."""
        if self.saved != self.step:
            state = {"models": {MODEL: described_model(self.card(), stem=NETWORK, lora=low_rank(self.settings))}}
            self.checkpoints.save(self.step, tensors=self._tensors(), state=state)
            self.saved = self.step

    def export(self) -> None:
        """Write the model folder of the newest checkpoint, and the head, which names that model."""
        self.checkpoints.wait()
        self.folder.metrics.sync()
        checkpoint = newest_intact(self.folder.path / CHECKPOINTS)
        assert checkpoint is not None  # just written
        export_model(checkpoint, self.folder.path / MODEL)
        backbone, card = load_model(self.folder.path / MODEL)
        identity = identity_of(backbone, card.backbone)
        before = self.network.card.lineage
        lineage = {**before, "fit": asdict(self.settings), "data": self.data.hash, "num_images": len(self.data)}
        if "fit" in before:
            lineage["start"] = before
        changed = {"backbone": identity, "backbone_name": card.name, "licence": card.licence, "lineage": lineage}
        save_head(self.folder.path / HEAD, Head(self.network.head, self.network.card.model_copy(update=changed)))

    def card(self) -> Card:
        """Return the card of the model as it is now."""
        card, task = self.start.card, self.network.card.task
        made = {
            "made_by": f"foveal {__version__} finetune",
            "images": self.data.hash,
            "steps": self.step,
            "finetune": {
                "task": task,
                "head": self.network.card.name,
                "num_images": len(self.data),
                "settings": asdict(self.settings),
            },
        }
        own = {
            "name": f"{card.name}, fine-tuned for {task}",
            "backbone": self.network.backbone.config,
            "licence": OWN,
            "lineage": made,
            "parents": [],
            "sha256": {},
        }
        if task == "classification":  # pictures are seen at the size at which they were learned from
            size, _ = sides(self.settings.crop_size or card.crop_size)
            own |= {"crop_size": size, "resize_size": round(size * card.resize_size / card.crop_size)}
        return inherited_card(card.model_copy(update=own), self.start, new=[])

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        optimizer = {
            f"{name}.{key}": value
            for name, parameter in self.network.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }
        return {NETWORK: self.network.state_dict(), OPTIMIZER: optimizer}

    def _restore(self, found: Checkpoint) -> None:
        self.network.load_state_dict(found.read(NETWORK))
        parameters = dict(self.network.named_parameters())
        for name, value in found.read(OPTIMIZER).items():
            parameter, _, key = name.rpartition(".")
            self.optimizer.state[parameters[parameter]][key] = value.to(self.device)
