"""A head as an ONNX graph: traced by PyTorch, since its network may be any; joined to the backbone's, or apart.

Shapes: B images, P = grid_h grid_w patches, D width, K classes or maps, H W pixels.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.export.graph import BackboneGraph
from foveal.export.onnx import LEAST_OPSET_OF_HEADS
from foveal.tasks.classify import Tokens
from foveal.tasks.dense import Level
from foveal.tasks.head import Head

_EXAMPLE = (2, 3, 4)  # images, grid_h, grid_w: no size is 1, which a trace takes for fixed, and none equals another

Kind = Literal["cls", "patches", "map"]


class Read(NamedTuple):
    """What a head reads: the class token (B, D), patch tokens (B, P, D) or map (B, D, grid_h, grid_w) after a block."""

    kind: Kind
    layer: int
    norm: bool

    def name(self, depth: int) -> str:
        """Return its name as an input of a head and an output of a backbone of that many blocks."""
        if self.norm and self.layer == depth - 1 and self.kind != "map":
            return self.kind
        return f"blocks.{self.layer}{'.normed' if self.norm else ''}.{self.kind}"

    def shape(self, width: int) -> tuple[int | str, ...]:
        """Return its shape; names stand for any number."""
        if self.kind == "map":
            return ("batch", width, "grid_h", "grid_w")
        return ("batch", width) if self.kind == "cls" else ("batch", "grid_h*grid_w", width)

    def of(self, graph: BackboneGraph) -> ir.Value:
        """Return it from a backbone's graph."""
        tokens = graph.tokens(self.layer, norm=self.norm)
        return {"cls": graph.cls, "patches": graph.patches, "map": graph.patch_map}[self.kind](tokens)


def reads_of(head: Head) -> list[Read]:
    """Return what the network of a head is given, in the order in which it is traced."""
    card, layers = head.card, sorted(head.card.layers)
    norm = card.norm or card.task == "classification"
    cls = [Read("cls", layer, norm) for layer in layers]
    if card.task == "classification":
        return [*cls, Read("patches", layers[-1], norm)]
    return [*cls, *(Read("map", layer, norm) for layer in layers)]


def output_shape(head: Head) -> tuple[int | str, ...]:
    """Return the shape of what a head says: logits (B, K), or logits or depth (B, K, H, W)."""
    num_maps = 1 if head.card.task == "depth" else int(head.card.settings["num_classes"])
    return ("batch", num_maps) if head.card.task == "classification" else ("batch", num_maps, "height", "width")


class _Classifier(nn.Module):
    """A classification head over separate tensors; gives logits (B, K)."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.network = head.network

    def forward(self, read: list[Tensor]) -> Tensor:
        *cls, patches = read
        return self.network(Tokens(torch.stack(cls, dim=1), patches))


class _Dense(nn.Module):
    """A head for masks or depth over separate tensors; gives maps (B, K, H, W), as `Predictor.scores` does."""

    def __init__(self, head: Head, patch_size: int) -> None:
        super().__init__()
        self.network, self.patch_size = head.network, patch_size
        settings = head.card.settings if head.card.task == "depth" else {}
        self.range = (settings.get("min_depth", 0.0), settings.get("max_depth"))

    def forward(self, read: list[Tensor]) -> Tensor:
        half = len(read) // 2
        found = self.network([Level(patches, cls) for cls, patches in zip(read[:half], read[half:], strict=True)])
        if self.range[1] is not None:
            found = found.clamp(*self.range)
        grid_h, grid_w = read[-1].shape[2:]
        size = (grid_h * self.patch_size, grid_w * self.patch_size)
        return F.interpolate(found, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def trace(head: Head, *, patch_size: int) -> tuple[ir.Model, list[Read]]:
    """Return the graph of a head, whose one output is what it says, and what its inputs are."""
    num_images, grid_h, grid_w = _EXAMPLE
    reads, width = reads_of(head), head.card.width
    shapes: dict[Kind, tuple[int, ...]] = {
        "cls": (num_images, width),
        "patches": (num_images, grid_h * grid_w, width),
        "map": (num_images, width, grid_h, grid_w),
    }
    batch, patches, tall, wide = (torch.export.Dim(name) for name in ("batch", "patches", "grid_h", "grid_w"))
    free = {"cls": {0: batch}, "patches": {0: batch, 1: patches}, "map": {0: batch, 2: tall, 3: wide}}
    network = _Classifier(head) if head.card.task == "classification" else _Dense(head, patch_size)
    with _quiet():
        program = torch.onnx.export(
            network.eval(),
            ([torch.zeros(shapes[one.kind]) for one in reads],),
            dynamo=True,
            verbose=False,
            opset_version=LEAST_OPSET_OF_HEADS,
            dynamic_shapes=([free[one.kind] for one in reads],),
        )
    assert program is not None  # it is with dynamo
    graph = program.model.graph
    used = [(value, one) for value, one in zip(graph.inputs, reads, strict=True) if value.uses()]
    graph.inputs[:] = [value for value, _ in used]
    return program.model, [one for _, one in used]


def join(graph: BackboneGraph, traced: ir.Model, reads: Sequence[Read], *, name: str) -> ir.Value:
    """Move the nodes of a head's graph behind those of the backbone, and return the head's output.

    Args:
        graph: takes the nodes.
        traced: of `trace`; it is used up.
        reads: its inputs.
        name: of the output, and in front of the names of everything else.
    """
    head, writer = traced.graph, graph.writer
    output = head.outputs.pop()
    for old, read in zip(head.inputs, reads, strict=True):
        ir.convenience.replace_all_uses_with(old, read.of(graph))
    for value in list(head.initializers.values()):
        del head.initializers[str(value.name)]
        value.name = f"{name}/{value.name}"
        writer.constants[value.name] = value
    for node in list(head):
        head.remove(node)
        for value in node.outputs:
            value.name, value.shape = f"{name}/{value.name}", None
        node.name = f"{name}/{node.name}"
        writer.nodes.append(node)
    output.name = name
    return output


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch from telling of itself: that torchvision is absent, that it calls functions on their way out.

    Nothing is lost by it: what is traced runs beside the original before it is published.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
