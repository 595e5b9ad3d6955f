"""One run of the backbone for all that is asked of an image: the blocks that its tokens and its heads read, together.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path

from torch import Tensor

from foveal.backbone.vit import Tokens, layer_numbers
from foveal.engine.base import Engine
from foveal.features.extract import Model
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.predict import Predictor

AnyPredictor = ClassPredictor | Predictor


class Blocks:
    """An engine that always runs the same blocks, whichever of them are asked for.

    An engine may compile a graph, with weights of its own, for each choice of blocks: this one needs a single graph.

    Args:
        engine: with nothing left to choose.
        layers: blocks that are run, through the final norm; others are left to the engine.
        depth: number of blocks.
    """

    def __init__(self, engine: Engine, layers: Iterable[int], *, depth: int) -> None:
        self.engine, self.layers, self.depth = engine, sorted(set(layers)), depth

    @property
    def description(self) -> dict[str, str]:
        """Return that of the engine."""
        return self.engine.description

    @property
    def identity(self) -> str:
        """Return that of the engine."""
        return self.engine.identity

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm; `batch` is (B, C, H, W) float32."""
        return self.intermediate(batch, 1)[0]

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order."""
        wanted = layer_numbers(layers, depth=self.depth)
        if not norm or not set(wanted) <= set(self.layers):
            return self.engine.intermediate(batch, layers, norm=norm)
        found = self.all_of(batch)
        return [found[number] for number in wanted]

    def all_of(self, batch: Tensor) -> dict[int, Tokens]:
        """Return the tokens after every block that is run, by its number."""
        return dict(zip(self.layers, self.engine.intermediate(batch, self.layers), strict=True))

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "Blocks":
        """Return this engine: it has nothing to decide."""
        return self


class _Ran(Blocks):
    """Gives the tokens of one batch that was run already."""

    def __init__(self, engine: Engine, found: Mapping[int, Tokens], *, depth: int) -> None:
        super().__init__(engine, found, depth=depth)
        self._found = dict(found)

    def all_of(self, batch: Tensor) -> dict[int, Tokens]:
        return self._found


def share_blocks(model: Model, heads: Mapping[str, AnyPredictor]) -> tuple[Model, dict[str, AnyPredictor]]:
    """Return a model and those of its heads that can share a run with it on one engine of `Blocks`; others as they are.

    A head can that reads blocks after the final norm, and for which the same engine was chosen.
    """
    sharing = {
        name: head
        for name, head in heads.items()
        if head.model.engine is model.engine and (isinstance(head, ClassPredictor) or head.head.card.norm)
    }
    if not sharing:
        return model, dict(heads)
    depth = model.card.backbone.depth
    read = {number for head in sharing.values() for number in head.head.card.layers}
    blocks = Blocks(model.engine, {depth - 1, *read}, depth=depth)
    shared = {name: _on(head, blocks) for name, head in sharing.items()}
    return with_engine(model, blocks), {name: shared.get(name, head) for name, head in heads.items()}


def shares(model: Model, head: AnyPredictor) -> bool:
    """Say whether a head can be run together with the tokens."""
    return isinstance(model.engine, Blocks) and head.model.engine is model.engine


def run_once(model: Model, heads: Mapping[str, AnyPredictor], batch: Tensor) -> tuple[Tokens, dict[str, AnyPredictor]]:
    """Run the backbone on a batch, and return its tokens, and heads that read on it what was found.

    Args:
        model: of `share_blocks`.
        heads: that share its run.
        batch: (B, C, H, W) float32, normalised; H and W multiples of the patch size, so that heads put nothing around.
    """
    assert isinstance(model.engine, Blocks)
    found = model.engine.all_of(batch)
    ran = _Ran(model.engine.engine, found, depth=model.engine.depth)
    return found[ran.layers[-1]], {name: _on(head, ran) for name, head in heads.items()}


def _on(head: AnyPredictor, engine: Engine) -> AnyPredictor:
    found = copy(head)
    found.model = with_engine(head.model, engine)
    return found


def with_engine(model: Model, engine: Engine) -> Model:
    """Return a model that runs on another engine."""
    found = copy(model)
    found.identity = model.identity  # hashed once
    found.engine = engine
    return found
