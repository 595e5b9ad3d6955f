"""The verdict on an export before it is published: beside the original, on real images, tokens and heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foveal.export.card import ExportCard
from foveal.export.graph_engine import GraphEngine
from foveal.export.onnx_engine import OnnxEngine, OnnxHead
from foveal.export.real_images import at_another_size, real_batches
from foveal.export.source import Source, open_source
from foveal.export.verdict import HeadPair, bytes_of, check_limit, judge
from foveal.tasks.classify import read_tokens
from foveal.tasks.head import Head
from foveal.tasks.predict import Predictor


@dataclass(frozen=True)
class Trial:
    """A model to export, and what the export will be judged by.

    Attributes:
        source: the model and its heads.
        batches: real images, normalised (B, C, H, W).
        limit: least cosine.
    """

    source: Source
    batches: Sequence[Tensor]
    limit: float

    def judged(self, card: ExportCard, candidate: GraphEngine, *, folder: Path) -> ExportCard:
        """Return the card of an export with its verdict, and refused where it does not pass.

        A few of the images are also compared at a size that is not square, unless the graph was built for others.

        Args:
            card: of the export.
            candidate: runs it.
            folder: of the export, whose files are weighed.
        """
        source = self.source
        others = at_another_size(self.batches[0], patch_size=source.backbone.config.patch_size)
        verdict = judge(
            candidate,
            source.model.engine,
            [*self.batches, *(batch for batch in others if candidate.takes(batch.shape))],
            limit=self.limit,
            heads={name: _pair(candidate, source, name) for name in source.heads},
            depth=source.backbone.config.depth,
            size_bytes=bytes_of(folder),
            original_bytes=sum(one.nbytes for one in source.backbone.parameters()),
        )
        return card.model_copy(update={"verdict": verdict.model_dump(mode="json"), "refused": verdict.reason or None})


def open_trial(
    model: str | Path,
    *,
    out: str | Path,
    heads: Sequence[str],
    images: str | Path | None,
    limit: float,
    accept_licence: str | None,
    num_heads: int | None,
) -> Trial:
    """Open what is exported and what it is judged on; see `open_source` and `real_batches`.

    Raises:
        FovealError: a limit that is no cosine, or what those refuse.
    """
    check_limit(limit)
    source = open_source(model, out=out, heads=heads, accept_licence=accept_licence, num_heads=num_heads)
    return Trial(source, real_batches(source.model.card, images), limit)


def _pair(candidate: GraphEngine, source: Source, name: str) -> HeadPair:
    head = source.heads[name]
    if name in candidate.output_names or not isinstance(candidate, OnnxEngine):

        def found(images: Tensor) -> Tensor:
            return torch.from_numpy(candidate.outputs(images, [name])[name])
    else:
        apart = OnnxHead(candidate, name)

        def found(images: Tensor) -> Tensor:
            return torch.from_numpy(apart(images))

    return HeadPair(head.card.task, found, _exact(source, head))


def _exact(source: Source, head: Head) -> Callable[[Tensor], Tensor]:
    """Return what a head says by PyTorch: logits of classification, or maps, of normalised images."""
    if head.card.task != "classification":
        return Predictor(source.model, head).scores

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return head.network(read_tokens(source.model, images, head.card.layers))

    return logits
