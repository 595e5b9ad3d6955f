"""The health page of a run, and the files behind it: kept up to date as the run goes on.

RUN/health.html is one file that needs no network. RUN/health/ holds `measured.jsonl`, a line for each measurement,
`events.jsonl`, when the run was started, continued and stopped, and the pictures.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from foveal.backbone.card import Card
from foveal.backbone.vit import VisionTransformer
from foveal.errors import FovealError
from foveal.files import write_atomically
from foveal.images.imageset import ImageSet
from foveal.pretrain.health.collapse import Size, Warned, warnings_of
from foveal.pretrain.health.page import Page, draw_page
from foveal.pretrain.health.probe import HealthProbe
from foveal.pretrain.learner import Learner
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.run import read_metrics
from foveal.pretrain.run_files import read_lines

PAGE, FOLDER = "health.html", "health"
_MEASURED, _EVENTS, _PHOTOGRAPHS, _PICTURE = "measured.jsonl", "events.jsonl", "images.png", "pca_{:08d}.png"

logger = logging.getLogger(__name__)


class HealthMonitor:
    """Measures when it is time, warns, and writes the page. Nothing of it changes the run.

    Args:
        recipe: with its section `health`.
        run: the run folder.
        images: those trained on.
        device: where the networks are.
    """

    def __init__(self, recipe: Recipe, *, run: Path, images: ImageSet, device: torch.device) -> None:
        self.recipe, self.run = recipe, run
        self.probe = HealthProbe(recipe, images, device=device)
        self._folder = run / FOLDER
        self._draw_s = 0.0  # of the last page; counted with the next measurement

    def begin(self, step: int) -> None:
        """Note that a run starts or continues at `step`; drop measurements of steps that will be run again."""
        kept = [line for line in read_lines(self._folder / _MEASURED) if 0 < step >= line["step"]]
        self._write(lambda: self._folder.mkdir(exist_ok=True))
        self._write(
            lambda: write_atomically(self._folder / _MEASURED, "".join(json.dumps(line) + "\n" for line in kept))
        )
        self.note(step, "continued" if step else "started")

    def update(
        self, step: int, *, learner: Learner, backbone: VisionTransformer, card: Card, temperature: float
    ) -> dict[str, float]:
        """Measure after `step` finished steps, warn, and write the page; return the numbers.

        Features that are not finite are no reason to end the run, whose own guard decides that: a warning says so.
        """
        started = time.perf_counter()
        try:
            numbers, photographs, patches = self.probe.measure(learner, backbone, card, temperature=temperature)
        except FovealError as error:
            logger.warning("the health of step %d could not be measured: %s", step, error)
            return {}
        self._write(lambda: photographs.save(self._folder / _PHOTOGRAPHS))
        self._write(lambda: patches.save(self._folder / _PICTURE.format(step)))
        numbers["seconds"] = time.perf_counter() - started + self._draw_s
        self._append(_MEASURED, {"step": step, **numbers})
        for warning in self._warnings():
            if warning.step == step:
                logger.warning("step %d: %s", step, warning.text)
        started = time.perf_counter()
        self.draw(running=step < self.recipe.total_steps)
        self._draw_s = time.perf_counter() - started
        return numbers

    def end(self, step: int, *, reason: str) -> None:
        """Note how a run ended, and write the page for the last time."""
        self.note(step, reason)
        self.draw(running=False)

    def note(self, step: int, what: str) -> None:
        """Write down that something happened after `step` finished steps."""
        self._append(_EVENTS, {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "what": what})

    def draw(self, *, running: bool) -> None:
        """Write the page from what is in the run folder."""
        page = Page(
            name=self.run.resolve().name,
            recipe=self.recipe,
            metrics=read_metrics(self.run),
            measured=read_lines(self._folder / _MEASURED),
            events=read_lines(self._folder / _EVENTS),
            warnings=self._warnings(),
            size=self._size(),
            kept_apart=self.probe.kept_apart,
            photographs=self._folder / _PHOTOGRAPHS,
            pictures={int(path.stem[4:]): path for path in sorted(self._folder.glob("pca_*.png"))},
            running=running,
        )
        self._write(lambda: write_atomically(self.run / PAGE, draw_page(page)))

    def _warnings(self) -> list[Warned]:
        return warnings_of(
            read_lines(self._folder / _MEASURED), size=self._size(), warmup_steps=self.recipe.optimizer.warmup_steps
        )

    def _size(self) -> Size:
        recipe = self.recipe
        return Size(len(self.probe.images), recipe.backbone.width, recipe.heads.dino.num_prototypes)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        def append() -> None:
            with open(self._folder / name, "a") as file:
                finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
                file.write(json.dumps(finite) + "\n")

        self._write(append)

    def _write(self, action: Callable[[], object]) -> None:
        """Write something; where that fails the page is out of date, and the run goes on."""
        try:
            action()
        except OSError as error:
            logger.warning("the health page is not up to date: cannot write in %s: %s", self._folder, error)
