"""An engine that is chosen on the images at hand, by the accuracy gate."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from foveal.backbone.vit import Tokens, VisionTransformer
from foveal.engine import gate
from foveal.engine.base import Engine
from foveal.engine.identity import identity_of
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError
from foveal.files import write_new

logger = logging.getLogger(__name__)

# Images that a choice is made on: the last gate.NUM_IMAGES are compared, int8 is calibrated on the others.
NUM_IMAGES = 32


class Refused(Exception):
    """A candidate that cannot be used here; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """A way to run a backbone.

    Attributes:
        name: of the engine.
        precision: in which it runs.
        processor: name of the processor it runs on.
        open: makes it ready, given images (B, C, H, W) of the set and the folder of the store, if there is one; raises
            Refused.
        exact: it is the reference itself.
    """

    name: str
    precision: str
    processor: str
    open: Callable[[Tensor, Path | None], Engine]
    exact: bool = False

    @property
    def label(self) -> str:
        """Engine and precision, for people."""
        return f"{self.name} {self.precision}"


class AutoEngine:
    """Runs a backbone by the first of several candidates that agrees with fp32 PyTorch on real images.

    A choice is made for certain blocks, and then holds for images of all sizes: by `settle`, or when images are first
    encoded, on these. It is said in one log line. Measured cosines are kept in the cache folder by model, engine,
    version, precision, processor, layers and grid of patches, so each is measured once.

    A store keeps its choice, and the int8 numbers where they are used, in a folder of its own: it is continued with the
    same engine whatever was encoded before or became of the cache.

    Args:
        backbone: read by all candidates.
        candidates: in the order of preference; the last should be exact, or nothing may pass.
        reference: fp32 PyTorch.
        limit: least cosine.
        hint: said with the choice, e.g. what could be installed.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        *,
        candidates: Sequence[Candidate],
        reference: TorchEngine,
        limit: float,
        hint: str = "",
    ) -> None:
        self._backbone = backbone
        self._candidates = candidates
        self._reference = reference
        self._limit = limit
        self._hint = hint
        self._chosen: dict[tuple[tuple[int, ...], bool], Engine] = {}
        self._said: set[str] = set()

    @cached_property
    def identity(self) -> str:
        """Return the hash that tells this network from others; see `identity_of`."""
        return identity_of(self._backbone, self._backbone.config)

    @property
    def description(self) -> dict[str, str]:
        """Return what is to be said of the engine that was chosen, of all where several blocks have several.

        Raises:
            FovealError: nothing was encoded yet; call `settle` with some of the images first.
        """
        found = [engine.description for engine in self._chosen.values()]
        if not found:
            raise FovealError("the engine is chosen on images, and none was encoded yet; call settle(images) first")
        keys = dict.fromkeys(key for one in found for key in one)
        return {key: ", ".join(dict.fromkeys(one[key] for one in found if key in one)) for key in keys}

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm; `batch` is (B, C, H, W) float32, normalised."""
        return self.intermediate(batch, 1)[0]

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order."""
        key = (self._backbone.layer_numbers(layers), norm)
        if key not in self._chosen:
            self._chosen[key], _ = self._choose([batch], *key, None)
        return self._chosen[key].intermediate(batch, layers, norm=norm)

    def attention(self, batch: Tensor, *, layer: int = -1, queries: Sequence[int] | None = None) -> Tensor:
        """Return the attention weights (B, heads, Q, N) of one block, by the reference whatever was chosen."""
        return self._reference.attention(batch, layer=layer, queries=queries)

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> Engine:
        """Choose now, and return the engine that was chosen; 32 images are enough for every candidate.

        Without a folder an earlier choice for these blocks stands. With one, only what the folder says and the images
        count, and the folder keeps the choice.

        Args:
            images: of the set that will be encoded: batches (B, C, H, W), each of one size. A candidate has to agree at
                every size.
            layers: blocks that will be asked for, through the final norm; None is the last.
            folder: of a store, for its engine; it need not exist.

        Raises:
            FovealError: no candidate is good enough.
        """
        key = (self._backbone.layer_numbers(1 if layers is None else layers), True)
        if folder is None and key in self._chosen:
            return self._chosen[key]
        batches = list(images)
        if folder is None:
            engine, _ = self._choose(batches, *key, None)
        else:
            engine = self._settle_in(folder, batches, *key)
        self._chosen.setdefault(key, engine)
        return engine

    def _settle_in(self, folder: Path, batches: Sequence[Tensor], layers: tuple[int, ...], norm: bool) -> Engine:
        """Return the engine that a folder names for these blocks, else choose it and write it down there."""
        path = folder / f"choice-{gate.digest({'model': self.identity, 'layers': layers, 'norm': norm})}.json"
        if found := self._recalled(path, batches):
            return found
        engine, candidate = self._choose(batches, layers, norm, folder)
        choice = {"engine": engine.description, "processor": candidate.processor}
        folder.mkdir(parents=True, exist_ok=True)
        if not write_new(path, json.dumps(choice, indent=2) + "\n"):
            return self._recalled(path, batches) or engine  # another process was faster
        return engine

    def _recalled(self, path: Path, batches: Sequence[Tensor]) -> Engine | None:
        """Return the engine that a store was begun with, or None where this computer does not have it."""
        try:
            choice = json.loads(path.read_text())
            description, processor = dict(choice["engine"]), choice["processor"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be used (%s); choosing again", path, error)
            return None
        for candidate in self._candidates:
            if (candidate.name, candidate.processor) != (description.get("name"), processor):
                continue
            try:
                engine = candidate.open(_largest(batches), path.parent)
            except (Refused, RuntimeError):
                continue
            if engine.description == description:
                return engine
        return None

    def _choose(
        self, batches: Sequence[Tensor], layers: tuple[int, ...], norm: bool, folder: Path | None
    ) -> tuple[Engine, Candidate]:
        reasons: list[str] = []
        for candidate in self._candidates:
            try:
                engine = candidate.open(_largest(batches), folder)
                if candidate.exact:
                    return self._take(candidate, engine, "the exact path", reasons), candidate
                measured = [self._measure(candidate, engine, images, layers, norm) for images in batches]
            except Refused as refused:
                reasons.append(f"{candidate.label} refused: {refused}")
                continue
            except RuntimeError as error:  # a library that cannot run the graph on this computer
                lines = str(error).strip().splitlines() or [type(error).__name__]
                reasons.append(f"{candidate.label} failed: {lines[-1]}")
                continue
            worst = min(measured, key=lambda one: (one.passes(self._limit), one.cls_min, one.patch_mean))
            if worst.passes(self._limit):
                return self._take(candidate, engine, str(worst), reasons), candidate
            reasons.append(f"{candidate.label} refused: {worst}, the limit is {self._limit}")
        raise FovealError(
            f"no engine is left: {'; '.join(reasons)}; leave precision out, or use engine 'torch', which is exact"
        )

    def _measure(
        self, candidate: Candidate, engine: Engine, images: Tensor, layers: tuple[int, ...], norm: bool
    ) -> gate.Agreement:
        """Return the agreement with the reference, from the cache where it was measured before."""
        key = {
            "model": self.identity,
            "engine": engine.description,
            "processor": candidate.processor,
            "layers": layers,
            "norm": norm,
            "grid": self._backbone.grid_of(images),
        }
        measured = gate.recall(key)
        if measured is None:
            compared = images[-gate.NUM_IMAGES :]
            exact = self._reference.intermediate(compared, layers, norm=norm)
            measured = gate.agreement(engine.intermediate(compared, layers, norm=norm), exact)
            gate.remember(key, measured)
        return measured

    def _take(self, candidate: Candidate, engine: Engine, why: str, reasons: list[str]) -> Engine:
        if candidate.label not in self._said:
            parts = [*reasons, f"engine: {candidate.label}, {why}" + ("" if self._said else self._hint)]
            logger.info("%s", "; ".join(parts))
            self._said.add(candidate.label)
        return engine


def _largest(batches: Sequence[Tensor]) -> Tensor:
    return max(batches, key=len)
