"""An engine that is chosen on the images at hand, by the accuracy gate."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from foveal.backbone.vit import Tokens, VisionTransformer
from foveal.engine import gate
from foveal.engine.base import Engine
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError

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
        open: makes it ready, given the images that the choice is made on; raises Refused.
        exact: it is the reference itself.
    """

    name: str
    precision: str
    processor: str
    open: Callable[[Tensor], Engine]
    exact: bool = False

    @property
    def label(self) -> str:
        """Engine and precision, for people."""
        return f"{self.name} {self.precision}"


class AutoEngine:
    """Runs a backbone by the first of several candidates that agrees with fp32 PyTorch on real images.

    The choice is made when images are first encoded, on the first of them, or before that by `settle`; it is said in
    one log line. Measured cosines are kept in the cache folder by weights, engine, version, precision, processor,
    layers and number of patches (by powers of two: sizes between them share a verdict), so each is measured once.

    The numbers are those of the candidate that was chosen: `description` names it, and within one machine and version
    the same images and settings give the same choice.

    Args:
        backbone: read by all candidates.
        candidates: in the order of preference; the last should be exact, or nothing may pass.
        reference: fp32 PyTorch.
        limit: least cosine.
        weights: hash of the weights, for the cache.
        hint: said with the choice, e.g. what could be installed.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        *,
        candidates: Sequence[Candidate],
        reference: TorchEngine,
        limit: float,
        weights: str,
        hint: str = "",
    ) -> None:
        self._backbone = backbone
        self._candidates = candidates
        self._reference = reference
        self._limit = limit
        self._weights = weights
        self._hint = hint
        self._opened: dict[str, Engine] = {}
        self._chosen: dict[tuple[object, ...], str] = {}

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of the engine that was chosen.

        Raises:
            FovealError: nothing was encoded yet; call `settle` with some of the images first.
        """
        labels = list(dict.fromkeys(self._chosen.values()))
        if not labels:
            raise FovealError("the engine is chosen on images, and none was encoded yet; call settle(images) first")
        found = self._opened[labels[0]].description
        if len(labels) > 1:  # a size or layer at which the first choice was refused
            found = found | {"precision": ", ".join(self._opened[label].description["precision"] for label in labels)}
        return found

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm; `batch` is (B, C, H, W) float32, normalised."""
        return self.intermediate(batch, 1)[0]

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order."""
        return self._engine_for(batch, layers, norm).intermediate(batch, layers, norm=norm)

    def attention(self, batch: Tensor, *, layer: int = -1, queries: Sequence[int] | None = None) -> Tensor:
        """Return the attention weights (B, heads, Q, N) of one block, by the reference whatever was chosen."""
        return self._reference.attention(batch, layer=layer, queries=queries)

    def settle(self, images: Tensor) -> None:
        """Choose now, on (B, C, H, W) images of the set that will be encoded; 32 are enough for every candidate."""
        self._engine_for(images, 1, True)

    def is_settled(self) -> bool:
        """Say whether a choice was made."""
        return bool(self._chosen)

    def _engine_for(self, images: Tensor, layers: int | Sequence[int], norm: bool) -> Engine:
        grid_h, grid_w = self._backbone.grid_of(images)
        numbers = self._backbone.layer_numbers(layers)
        conditions = (numbers, norm, (grid_h * grid_w).bit_length())
        if conditions not in self._chosen:
            self._chosen[conditions] = self._choose(images, numbers, norm, conditions)
        return self._opened[self._chosen[conditions]]

    def _choose(self, images: Tensor, layers: tuple[int, ...], norm: bool, conditions: tuple[object, ...]) -> str:
        reasons: list[str] = []
        for candidate in self._candidates:
            try:
                engine = self._opened.get(candidate.label) or candidate.open(images)
                if candidate.exact:
                    return self._take(candidate, engine, "the exact path", reasons)
                measured = self._measure(candidate, engine, images, layers, norm, conditions)
            except Refused as refused:
                reasons.append(f"{candidate.label} refused: {refused}")
                continue
            except RuntimeError as error:  # a library that cannot run the graph on this computer
                reasons.append(f"{candidate.label} failed: {str(error).strip().splitlines()[-1]}")
                continue
            if measured.passes(self._limit):
                return self._take(candidate, engine, str(measured), reasons)
            reasons.append(f"{candidate.label} refused: {measured}, the limit is {self._limit}")
        raise FovealError(
            f"no engine is left: {'; '.join(reasons)}; leave precision out, or use engine 'torch', which is exact"
        )

    def _measure(
        self,
        candidate: Candidate,
        engine: Engine,
        images: Tensor,
        layers: tuple[int, ...],
        norm: bool,
        conditions: tuple[object, ...],
    ) -> gate.Agreement:
        """Return the agreement with the reference, from the cache where it was measured before."""
        key = {
            "weights": self._weights,
            "backbone": self._backbone.config.model_dump(mode="json"),
            "engine": engine.description,
            "processor": candidate.processor,
            "layers": layers,
            "norm": norm,
            "patches": f"below 2**{conditions[-1]}",
        }
        measured = gate.recall(key)
        if measured is None:
            compared = images[-gate.NUM_IMAGES :]
            exact = self._reference.intermediate(compared, layers, norm=norm)
            measured = gate.agreement(engine.intermediate(compared, layers, norm=norm), exact)
            gate.remember(key, measured)
        return measured

    def _take(self, candidate: Candidate, engine: Engine, why: str, reasons: list[str]) -> str:
        first = not self._chosen
        self._opened[candidate.label] = engine
        if first or candidate.label not in self._chosen.values():
            parts = [*reasons, f"engine: {candidate.label}, {why}" + (self._hint if first else "")]
            logger.info("%s", "; ".join(parts))
        return candidate.label
