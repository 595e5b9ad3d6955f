"""A backbone as an ONNX graph, written operation by operation.

Nothing is traced: the graph takes any batch and any size in whole patches, resizes the positional embedding itself, and
every weight keeps the name that it has in the network (see `BackboneGraph.linear` for the four layers of a block).

Shapes: B images, C channels, P = grid_h grid_w patches, N = prefix + P tokens, D width, h heads, R registers, G the
side of the stored positional embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from foveal.backbone.vit import VisionTransformer
from foveal.engine.linears import Linear, linears_of
from foveal.engine.quantise import Quantised
from foveal.export.int8 import quantised_linear
from foveal.export.resizing import resize_matrices

_END = np.iinfo(np.int64).max


class GraphWriter:
    """Nodes and constants in the order in which they are written.

    Args:
        opset: of the operators; 17 or later.

    Attributes:
        nodes: in the order in which they run.
        constants: by their names.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}

    def op(self, kind: str, *inputs: ir.Value | None, name: str | None = None, **attributes: Any) -> ir.Value:
        """Add one operation; with a name, node and output are called so."""
        self.nodes.append(ir.node(kind, inputs, attributes, name=name))
        (found,) = self.nodes[-1].outputs
        found.name = name
        return found

    def weight(self, name: str, values: Tensor) -> ir.Value:
        """Return a weight as a constant of that name; the same one for the same name."""
        if name not in self.constants:
            self._keep(TorchTensor(values.detach().float().cpu().contiguous(), name=name), name)
        return self.constants[name]

    def integers(self, *values: int) -> ir.Value:
        """Return a vector of int64."""
        return self.array(f"constant.{'x'.join(map(str, values))}", np.array(values, np.int64))

    def integer(self, value: int) -> ir.Value:
        """Return a scalar of int64."""
        return self.array(f"constant.scalar_{value}", np.array(value, np.int64))

    def number(self, value: float) -> ir.Value:
        """Return a scalar of float32."""
        return self.array(f"constant.number_{value!r}", np.array(value, np.float32))

    def array(self, name: str, values: np.ndarray) -> ir.Value:
        """Return a constant of that name and the array's type; the same one for the same name."""
        if name not in self.constants:
            self._keep(ir.tensor(values, name=name), name)
        return self.constants[name]

    def _keep(self, tensor: ir.TensorProtocol, name: str) -> None:
        shape = ir.Shape(tensor.numpy().shape)
        self.constants[name] = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)

    def batch_size(self, x: ir.Value) -> ir.Value:
        """Return (1,) int64: the first dimension."""
        return self.op("Shape", x, start=0, end=1)


class BackboneGraph:
    """The tokens of a backbone after every block, and what is made of them.

    Args:
        backbone: its weights are taken as they lie in memory, not copied; LayerScale is folded into the layers before.
        opset: of the operators; 17 or later.
        quantised: linear layers to run in int8, by the names of `linears_of`; None or missing names run in float.

    Attributes:
        images: the input (B, C, H, W).
        writer: takes further operations.
    """

    def __init__(
        self, backbone: VisionTransformer, *, opset: int, quantised: Mapping[str, Quantised] | None = None
    ) -> None:
        self.backbone, self.config = backbone, backbone.config
        self.writer = GraphWriter(opset)
        self.images = ir.val("images", ir.DataType.FLOAT, ("batch", self.config.channels, "height", "width"))
        self._quantised = quantised or {}
        self._normed: dict[int, ir.Value] = {}
        x = self._embed()
        self._tokens = [x := self._block(x, number) for number in range(self.config.depth)]

    def tokens(self, layer: int, *, norm: bool) -> ir.Value:
        """Return the tokens (B, N, D) after a block, numbered from 0.

        They are called "blocks.5" and the like, or after the final norm "blocks.5.normed".
        """
        if not norm:
            return self._tokens[layer]
        if layer not in self._normed:
            name = f"blocks.{layer}.normed"
            self._normed[layer] = self._layer_norm(self._tokens[layer], "norm", self.backbone.norm, name=name)
        return self._normed[layer]

    def cls(self, tokens: ir.Value, *, name: str | None = None) -> ir.Value:
        """Return the class token (B, D)."""
        return self.writer.op("Gather", tokens, self.writer.integer(0), axis=1, name=name)

    def registers(self, tokens: ir.Value, *, name: str | None = None) -> ir.Value:
        """Return the registers (B, R, D)."""
        return self._slice(tokens, 1, self.backbone.num_prefix_tokens, name=name)

    def patches(self, tokens: ir.Value, *, name: str | None = None) -> ir.Value:
        """Return the patch tokens (B, P, D)."""
        return self._slice(tokens, self.backbone.num_prefix_tokens, _END, name=name)

    def patch_map(self, tokens: ir.Value, *, name: str | None = None) -> ir.Value:
        """Return the patch tokens on their grid (B, D, grid_h, grid_w)."""
        op, write = self.writer.op, self.writer
        columns = op("Transpose", self.patches(tokens), perm=(0, 2, 1))
        shape = op("Concat", write.integers(0, self.config.width), self.grid_h, self.grid_w, axis=0)
        return op("Reshape", columns, shape, name=name)

    def linear(self, x: ir.Value, layer: Linear) -> ir.Value:
        """Return a linear layer of `x`.

        Two nodes of the layer's name: NAME, a MatMul, and NAME.sum, an Add. Their constants are NAME.weight, (C, O) as
        MatMul takes it, and NAME.bias, both multiplied by LayerScale where the layer ends a branch, as `linears_of` has
        them: what is quantised there fits here.
        """
        op, write = self.writer.op, self.writer
        if (found := self._quantised.get(layer.name)) is not None:
            return quantised_linear(write, x, layer, found)
        product = op("MatMul", x, write.weight(f"{layer.name}.weight", layer.weight.T), name=layer.name)
        return op("Add", product, write.weight(f"{layer.name}.bias", layer.bias), name=f"{layer.name}.sum")

    def _embed(self) -> ir.Value:
        op, write, config = self.writer.op, self.writer, self.config
        side = [config.patch_size] * 2
        projection = self.backbone.get_submodule("patch_embed.proj")
        weights = [
            write.weight(f"patch_embed.proj.{part}", projection.get_parameter(part)) for part in ("weight", "bias")
        ]
        patches = op("Conv", self._whole_patches(), *weights, kernel_shape=side, strides=side, name="patch_embed.proj")
        patches = op("Reshape", patches, write.integers(0, config.width, -1))
        patches = op("Add", op("Transpose", patches, perm=(0, 2, 1)), self._position())
        cls_position = self.backbone.pos_embed[:, :1]
        prefix = [self.backbone.cls_token + cls_position]
        if config.num_registers:
            prefix.append(self.backbone.register_tokens)
        first = write.weight("prefix", torch.cat(prefix, dim=1))
        shape = op(
            "Concat",
            write.batch_size(self.images),
            write.integers(self.backbone.num_prefix_tokens, config.width),
            axis=0,
        )
        return op("Concat", op("Expand", first, shape), patches, axis=1, name="embedded")

    def _whole_patches(self) -> ir.Value:
        """Return the images, reshaped to what they are: the convolution would drop what is no whole patch.

        Whoever runs the graph without foveal is told so by the reshape, which costs nothing.
        """
        op, write, size = self.writer.op, self.writer, self.writer.integers(self.config.patch_size)
        self.grid_h = op("Div", op("Shape", self.images, start=2, end=3), size, name="grid_h")
        self.grid_w = op("Div", op("Shape", self.images, start=3, end=4), size, name="grid_w")
        sides = (op("Mul", grid, size) for grid in (self.grid_h, self.grid_w))
        shape = op("Concat", write.integers(0, self.config.channels), *sides, axis=0)
        return op("Reshape", self.images, shape, name="whole_patches")

    def _position(self) -> ir.Value:
        """Return the positional embedding (1, P, D) of the grid: rows @ stored @ columns.T, for every channel."""
        op, write, config = self.writer.op, self.writer, self.config
        side, width = config.grid_size, config.width
        stored = write.weight("pos_embed", self.backbone.pos_embed[0, 1:].view(side, side * width))
        rows, columns = resize_matrices(write, self.grid_h, self.grid_w, side=side, mode=config.resize_mode)
        tall = op("Reshape", op("MatMul", rows, stored), write.integers(-1, side, width))
        return op("Reshape", op("MatMul", columns, tall), write.integers(1, -1, width), name="position")

    def _block(self, x: ir.Value, number: int) -> ir.Value:
        op, part, name = self.writer.op, self.backbone.get_submodule(f"blocks.{number}"), f"blocks.{number}"
        qkv, proj, first, second = linears_of(self.backbone, number)
        mixed = self._attention(self.linear(self._layer_norm(x, f"{name}.norm1", part.norm1), qkv))  # type: ignore[arg-type]
        x = op("Add", x, self.linear(mixed, proj))
        hidden = self.linear(self._layer_norm(x, f"{name}.norm2", part.norm2), first)  # type: ignore[arg-type]
        hidden = self._gate(hidden) if self.config.ffn == "swiglu" else self._gelu(hidden)
        return op("Add", x, self.linear(hidden, second), name=name)

    def _attention(self, qkv: ir.Value) -> ir.Value:
        """Return the attended values (B, N, D) of queries, keys and values (B, N, 3 D)."""
        op, write, width, heads = self.writer.op, self.writer, self.config.width, self.config.num_heads
        parts = (self._last(qkv, number * width, (number + 1) * width) for number in range(3))
        q, k, v = (op("Reshape", part, write.integers(0, 0, heads, width // heads)) for part in parts)
        q = op("Mul", op("Transpose", q, perm=(0, 2, 1, 3)), write.number((width // heads) ** -0.5))
        scores = op("Softmax", op("MatMul", q, op("Transpose", k, perm=(0, 2, 3, 1))), axis=-1)
        mixed = op("MatMul", scores, op("Transpose", v, perm=(0, 2, 1, 3)))
        return op("Reshape", op("Transpose", mixed, perm=(0, 2, 1, 3)), write.integers(0, 0, width))

    def _gelu(self, x: ir.Value) -> ir.Value:
        """Return x (1 + erf(x / sqrt 2)) / 2; one operation from opset 20 on."""
        op, write = self.writer.op, self.writer
        if write.opset >= 20:
            return op("Gelu", x)
        share = op("Add", op("Erf", op("Mul", x, write.number(2**-0.5))), write.number(1.0))
        return op("Mul", op("Mul", x, share), write.number(0.5))

    def _gate(self, x: ir.Value) -> ir.Value:
        op, half = self.writer.op, self.config.ffn_hidden
        gate, value = self._last(x, 0, half), self._last(x, half, _END)
        return op("Mul", op("Mul", gate, op("Sigmoid", gate)), value)

    def _layer_norm(self, x: ir.Value, prefix: str, norm: nn.LayerNorm, *, name: str | None = None) -> ir.Value:
        weights = [self.writer.weight(f"{prefix}.{part}", norm.get_parameter(part)) for part in ("weight", "bias")]
        return self.writer.op("LayerNormalization", x, *weights, axis=-1, epsilon=norm.eps, name=name or prefix)

    def _slice(self, x: ir.Value, start: int, end: int, *, axis: int = 1, name: str | None = None) -> ir.Value:
        bounds: Sequence[ir.Value] = [self.writer.integers(number) for number in (start, end, axis)]
        return self.writer.op("Slice", x, *bounds, name=name)

    def _last(self, x: ir.Value, start: int, end: int) -> ir.Value:
        return self._slice(x, start, end, axis=2)
