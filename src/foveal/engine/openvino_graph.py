"""A backbone as an OpenVINO graph, written operation by operation.

Nothing is traced: the graph has any batch size and any image size, the positional embedding enters as an input (so it
is the backbone's own at every size), and quantised layers are put exactly where they are wanted.

Shapes: B images, P patches, N = prefix + P tokens, D width, h heads.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveal.backbone.vit import VisionTransformer
from foveal.engine.linears import Linear, linears_of
from foveal.engine.quantise import Quantised
from foveal.errors import FovealError


def is_installed() -> bool:
    """Say whether OpenVINO can be imported."""
    return "openvino" in sys.modules or importlib.util.find_spec("openvino") is not None


def import_openvino(*, instead: str = "") -> Any:
    """Import OpenVINO without the reports of use that it sends over the network when it is imported.

    Args:
        instead: how else to do without it, for the message where it is not installed.

    Raises:
        FovealError: it is not installed.
    """
    if not is_installed():
        raise FovealError(f"OpenVINO is not installed; run pip install 'foveal[cpu]'{instead}")
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    # With its reporting package hidden, OpenVINO takes the stub that it carries for that case.
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "openvino_telemetry"}
    sys.modules.update(dict.fromkeys([*hidden, "openvino_telemetry"]))  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules["openvino_telemetry"]
        sys.modules.update(hidden)


@torch.no_grad()
def build(
    backbone: VisionTransformer, layers: Sequence[int], *, norm: bool, quantised: Mapping[str, Quantised] | None = None
) -> Any:
    """Return an `openvino.Model` that computes the tokens after chosen blocks.

    Args:
        backbone: weights on the CPU; they are copied.
        layers: numbers of blocks from 0, ascending.
        norm: apply the final norm to each.
        quantised: linear layers to run in int8, by the names of `linears_of`; None or missing names run in float.

    Returns:
        Inputs "images" (B, C, H, W) and "position" (1, P, D); outputs (B, N, D), one a layer.
    """
    openvino = import_openvino()
    writer = _Writer(importlib.import_module("openvino.opset15"), quantised or {})
    x, parameters = writer.embed(backbone)
    outputs = []
    for number in range(max(layers) + 1):
        x = writer.block(x, backbone, number)
        if number in layers:
            outputs.append(writer.layer_norm(x, backbone.norm) if norm else x)
    return openvino.Model(outputs, parameters, "backbone")


class _Writer:
    """Writes the parts of a backbone with the operations `op`."""

    def __init__(self, op: Any, quantised: Mapping[str, Quantised]) -> None:
        self.op = op
        self.quantised = dict(quantised)
        self.scaled_before: set[str] = set()

    def embed(self, backbone: VisionTransformer) -> tuple[Any, list[Any]]:
        """Return the first tokens and the inputs of the graph."""
        op, config = self.op, backbone.config
        patch, width = config.patch_size, config.width
        images = op.parameter([-1, config.channels, -1, -1], np.float32, name="images")
        position = op.parameter([1, -1, width], np.float32, name="position")
        projection = backbone.get_submodule("patch_embed.proj")
        x = op.convolution(images, self.floats(projection.weight), [patch, patch], [0, 0], [0, 0], [1, 1])  # type: ignore[arg-type]
        x = op.transpose(op.reshape(x, self.integers(0, width, -1), True), self.integers(0, 2, 1))
        x = op.add(op.add(x, self.floats(projection.bias)), position)  # type: ignore[arg-type]
        cls_position, _ = backbone.position(config.grid_size, config.grid_size)
        prefix = backbone.cls_token + cls_position
        if config.num_registers:
            prefix = torch.cat([prefix, backbone.register_tokens], dim=1)
        num_images = op.gather(op.shape_of(images), self.integers(0), self.integers(0))
        shape = op.concat([num_images, self.integers(*prefix.shape[1:])], 0)
        return op.concat([op.broadcast(self.floats(prefix), shape), x], 1), [images, position]

    def block(self, x: Any, backbone: VisionTransformer, number: int) -> Any:
        """Return the tokens after one more block."""
        op = self.op
        part = backbone.get_submodule(f"blocks.{number}")
        qkv, proj, first, second = linears_of(backbone, number)
        qkv = self.scaled(qkv, proj)
        if backbone.config.ffn == "swiglu":
            first = self.scaled(first, second)
        heads = self.linear(self.layer_norm(x, part.norm1, before=qkv), qkv)  # type: ignore[arg-type]
        x = op.add(x, self.linear(self.attention(heads, backbone.config.num_heads), proj))
        hidden = self.linear(self.layer_norm(x, part.norm2, before=first), first)  # type: ignore[arg-type]
        if backbone.config.ffn == "swiglu":
            halves = op.split(hidden, self.integer(-1), 2)
            hidden = op.multiply(op.swish(halves.output(0)), halves.output(1))
        else:
            hidden = op.gelu(hidden, "erf")
        return op.add(x, self.linear(hidden, second))

    def attention(self, qkv: Any, num_heads: int) -> Any:
        """Return the attended values (B, N, D) of queries, keys and values (B, N, 3 D)."""
        op = self.op
        split = op.reshape(qkv, self.integers(0, 0, 3, num_heads, -1), True)
        split = op.transpose(split, self.integers(2, 0, 3, 1, 4))
        q, k, v = (op.gather(split, self.integer(i), self.integer(0)) for i in range(3))
        mixed = op.transpose(op.scaled_dot_product_attention(q, k, v), self.integers(0, 2, 1, 3))
        return op.reshape(mixed, self.integers(0, 0, -1), True)

    def layer_norm(self, x: Any, norm: nn.LayerNorm, *, before: Linear | None = None) -> Any:
        """Return the normalised tokens, divided by the input scales of the layer that follows, if it has some.

        OpenVINO 2026.4 rounds wrongly where bounds that differ by channel follow a norm, so the norm does the scaling.
        """
        op = self.op
        scale = torch.ones(1)
        if before is not None and before.name in self.quantised:
            scale = self.quantised[before.name].input_scale
            self.scaled_before.add(before.name)
        normal = op.mvn(x, self.integers(-1), True, norm.eps, "inside_sqrt")
        return op.add(op.multiply(normal, self.floats(norm.weight / scale)), self.floats(norm.bias / scale))

    def linear(self, x: Any, layer: Linear) -> Any:
        """Return a linear layer of `x`, quantised where the layer is among the quantised ones."""
        op = self.op
        found = self.quantised.get(layer.name)
        if found is None:
            return op.add(op.matmul(x, self.floats(layer.weight), False, True), self.floats(layer.bias))
        # Where the inputs were not scaled before, the bounds between which they are rounded do it at no cost.
        scale = torch.ones(1) if layer.name in self.scaled_before else found.input_scale
        inner = self.floats(torch.tensor(found.low)), self.floats(torch.tensor(found.high))
        outer = self.floats(found.low * scale), self.floats(found.high * scale)
        x = op.fake_quantize(x, *outer, *inner, found.levels)
        integers = op.constant(found.integer_weight(layer.weight).numpy())
        weight = op.multiply(op.convert(integers, np.float32), self.floats(found.weight_scale[:, None]))
        return op.add(op.matmul(x, weight, False, True), self.floats(found.bias))

    def scaled(self, layer: Linear, by: Linear) -> Linear:
        """Return `layer` with its outputs divided by the input scales of `by`, which they reach unmixed.

        Attention and the gate of SwiGLU pass a factor of a value channel on as it is, and OpenVINO cannot round their
        output with one range a channel. The factor belongs to the last outputs: values, not queries, keys or gates.
        """
        found = self.quantised.get(by.name)
        if found is None:
            return layer
        factor = torch.ones(len(layer.bias))
        factor[-len(found.input_scale) :] = 1 / found.input_scale
        self.scaled_before.add(by.name)
        if layer.name in self.quantised:
            own = self.quantised[layer.name]
            self.quantised[layer.name] = replace(own, weight_scale=own.weight_scale * factor, bias=own.bias * factor)
        return layer._replace(weight=layer.weight * factor[:, None], bias=layer.bias * factor)

    def floats(self, values: Tensor) -> Any:
        return self.op.constant(np.ascontiguousarray(values.detach().cpu().numpy(), dtype=np.float32))

    def integers(self, *values: int) -> Any:
        return self.op.constant(np.array(values, dtype=np.int64))

    def integer(self, value: int) -> Any:
        return self.op.constant(np.int64(value))
