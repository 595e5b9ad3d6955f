"""The steps of a fit, whatever the head: where they begin, when their state is kept, how they end."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from math import inf, isfinite, nan
from pathlib import Path

import torch
from torch import Tensor, nn

from foveal.engine.memory import freed_memory_kept
from foveal.errors import DivergedError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.signals import caught_signals, pass_on
from foveal.tasks.fit_state import restore_state, save_state
from foveal.tasks.head import HeadCard, build_network
from foveal.tasks.protocols import FitSettings, learning_rate_at

LossAt = Callable[[nn.Module, int], Tensor]


def run_steps(
    model: Model,
    card: HeadCard,
    data_hash: str,
    settings: FitSettings,
    losses: Callable[[], LossAt],
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, float]:
    """Fit the network that a card describes, on the device of the engine, and return it with its last loss.

    A state is saved every `settings.save_every_s` seconds, after the last, and when Ctrl-C or SIGTERM asks for the end:
    after the step that was begun.

    Args:
        model: the frozen backbone.
        card: of the head.
        data_hash: of the samples.
        settings: see there.
        losses: called once, after the state was read and before the first step, for the long work that they need; gives
            a function of (network, step) that returns the loss, a function of both alone.
        state: file from which an interrupted fit goes on, and into which it is saved, also at the end: once the head is
            kept it can be removed.
        progress: called with (steps done, steps in all).

    Raises:
        FovealError: a state of other settings.
        WeightsError: a damaged state.
        DivergedError: a loss or a gradient that is not finite; the state, which would lead there again, is removed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = build_network(card).train().to(model.engine.description["device"])
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1.0, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay
    )
    stamp = _stamp(model, card, data_hash, settings)
    first, loss = (0, nan) if state is None else restore_state(state, network, optimizer, stamp=stamp)
    loss_at = losses()
    saved = time.monotonic()
    with caught_signals() as caught, freed_memory_kept():
        for step in range(first, settings.steps):
            try:
                loss = _update(network, optimizer, loss_at, step, settings)
            except DivergedError:
                if state is not None:
                    state.unlink(missing_ok=True)
                raise
            stop = bool(caught)  # what comes after this look waits for the next step
            is_last = stop or step + 1 == settings.steps
            if state is not None and (is_last or time.monotonic() - saved >= settings.save_every_s):
                save_state(state, network, optimizer, step=step + 1, loss=loss, stamp=stamp)
                saved = time.monotonic()
            if stop:
                break
            if progress:
                progress(step + 1, settings.steps)
    pass_on(caught)
    return network.cpu().eval(), loss


def _update(
    network: nn.Module, optimizer: torch.optim.Optimizer, loss_at: LossAt, step: int, settings: FitSettings
) -> float:
    """Make the update of a step and return its loss."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, settings)
    loss = loss_at(network, step)
    optimizer.zero_grad()
    loss.backward()
    limit = inf if settings.clip is None else settings.clip
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), limit).item()
    if not (isfinite(norm) and isfinite(loss.item())):
        raise DivergedError(
            f"step {step} of the fit is not finite: loss {loss.item()}, gradient norm {norm}; fit again with a lower "
            f"learning rate than {settings.learning_rate:g}"
        )
    optimizer.step()
    return loss.item()


def _stamp(model: Model, card: HeadCard, data_hash: str, settings: FitSettings) -> str:
    """Return a hash of everything that decides the numbers."""
    numbers = {name: value for name, value in asdict(settings).items() if name != "save_every_s"}
    what = [model.identity, card.model_dump_json(), data_hash, json.dumps(numbers)]
    return sha256("\n".join(what).encode()).hexdigest()
