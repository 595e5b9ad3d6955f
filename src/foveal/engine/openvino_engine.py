"""The engine that runs a backbone on the CPU with OpenVINO."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from foveal.backbone.vit import Tokens, VisionTransformer
from foveal.engine.identity import identity_of
from foveal.engine.openvino_graph import build, import_openvino
from foveal.engine.quantise import Quantised

OpenVINOPrecision = Literal["fp32", "bf16", "fp16"]
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
# A compiled graph holds a copy of the weights, so only the last ones asked for are kept.
_MAX_COMPILED = 2
_MAX_POSITIONS = 64


class OpenVINOEngine:
    """Runs a backbone on the CPU: normalised images in, float32 tokens out.

    One graph serves every batch and image size. It is compiled when a choice of layers is first asked for (a second or
    two for ViT-S), with as many threads as PyTorch uses.

    Args:
        backbone: read, not copied; it stays on the CPU and gives the positional embedding of each size.
        precision: of all that is not quantised. OpenVINO runs fp32 where the processor lacks the instructions.
        quantised: linear layers to run in int8, by name; see `quantise`.
        calibration: names the numbers in `quantised` in the description.

    Raises:
        FovealError: OpenVINO is not installed.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        *,
        precision: OpenVINOPrecision = "fp32",
        quantised: Mapping[str, Quantised] | None = None,
        calibration: str = "",
    ) -> None:
        self._openvino = import_openvino()
        self._backbone = backbone.cpu().eval()
        self._precision = precision
        self._quantised = quantised
        self._calibration = calibration
        self._compiled: OrderedDict[tuple[tuple[int, ...], bool], Any] = OrderedDict()
        self._positions: OrderedDict[tuple[int, int], Any] = OrderedDict()

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of this engine; an int8 one also names its calibration and the rest's precision."""
        found = {"name": "openvino", "precision": self._precision, "device": "cpu", "version": version()}
        if self._quantised is not None:
            found |= {"precision": "int8", "rest": self._precision, "calibration": self._calibration}
        return found

    @property
    def identity(self) -> str:
        """Return the hash that tells this network from others; see `identity_of`."""
        return identity_of(self._backbone, self._backbone.config)

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm.

        Args:
            batch: (B, C, H, W) float32, normalised; H and W multiples of the patch size.
        """
        return self.intermediate(batch, 1)[0]

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order."""
        grid = self._backbone.grid_of(batch)
        request = self._request(self._backbone.layer_numbers(layers), norm)
        pixels = batch.detach().to("cpu", torch.float32).contiguous().numpy()
        outputs = request.infer([pixels, self._position(*grid)], share_inputs=True, share_outputs=True)
        prefix = self._backbone.num_prefix_tokens
        # Copied: the memory of an output is used again by the next batch.
        arrays = [torch.from_numpy(outputs[i].copy()) for i in range(len(outputs))]
        return [Tokens(x[:, 0], x[:, 1:prefix], x[:, prefix:]) for x in arrays]

    @torch.inference_mode()
    def attention(self, batch: Tensor, *, layer: int = -1, queries: Sequence[int] | None = None) -> Tensor:
        """Return the attention weights (B, heads, Q, N) of one block, by PyTorch: the graph does not give them."""
        return self._backbone.attention(batch.detach().cpu(), layer=layer, queries=queries)

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "OpenVINOEngine":
        """Return this engine: it has nothing to decide."""
        return self

    def _request(self, layers: tuple[int, ...], norm: bool) -> Any:
        key = (layers, norm)
        if key not in self._compiled:
            model = build(self._backbone, layers, norm=norm, quantised=self._quantised)
            settings = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                # Decoding threads run beside: none of these may be tied to a core.
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            }
            compiled = self._openvino.Core().compile_model(model, "CPU", settings)
            self._compiled[key] = compiled.create_infer_request()
            while len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    @torch.no_grad()
    def _position(self, grid_h: int, grid_w: int) -> Any:
        """Return the positional embedding (1, P, D) of a grid of patches, as the backbone makes it."""
        if (grid_h, grid_w) not in self._positions:
            _, patches = self._backbone.position(grid_h, grid_w)
            self._positions[grid_h, grid_w] = patches.float().contiguous().numpy()
            if len(self._positions) > _MAX_POSITIONS:
                self._positions.popitem(last=False)
        return self._positions[grid_h, grid_w]


def version() -> str:
    """Return the version of OpenVINO without its build number."""
    return str(import_openvino().__version__).partition("-")[0]
