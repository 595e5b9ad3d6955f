"""The engine that runs a backbone with PyTorch as it is."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from foveal.backbone.vit import Tokens, VisionTransformer
from foveal.engine.base import Precision
from foveal.engine.identity import identity_of
from foveal.engine.memory import freed_memory_kept
from foveal.errors import FovealError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """Runs a backbone without gradients: normalised images in, float32 tokens out.

    Args:
        backbone: moved to `device` and set to evaluation mode; not copied.
        precision: "fp32", or "bf16" or "fp16" for autocast (weights and residual stream stay float32). It is taken as
            given: no accuracy gate is run.
        device: a torch device.

    Example:
        >>> from foveal.backbone.variants import backbone_config
        >>> engine = TorchEngine(VisionTransformer(backbone_config("vit_nano")).init_weights(torch.Generator()))
        >>> engine.encode(torch.zeros(2, 3, 28, 42)).patches.shape
        torch.Size([2, 6, 48])
    """

    def __init__(
        self, backbone: VisionTransformer, *, precision: Precision = "fp32", device: str | torch.device = "cpu"
    ) -> None:
        if precision not in get_args(Precision):
            raise FovealError(f"precision='{precision}' is not known; choose {', '.join(get_args(Precision))}")
        self.device = torch.device(device)
        self.precision = precision
        self.backbone = backbone.to(self.device).eval()

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of this engine."""
        return {
            "name": "torch",
            "precision": self.precision,
            "device": self.device.type,
            "version": torch.__version__,
        }

    @property
    def identity(self) -> str:
        """Return the hash that tells this network from others; see `identity_of`."""
        return identity_of(self.backbone, self.backbone.config)

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm.

        Args:
            batch: (B, C, H, W) float32, normalised; H and W multiples of the patch size.
        """
        return self.intermediate(batch, 1)[0]

    @torch.inference_mode()
    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order."""
        reduced = self.precision != "fp32"
        with freed_memory_kept(), torch.autocast(self.device.type, dtype=_DTYPES[self.precision], enabled=reduced):
            found = self.backbone.intermediate(batch.to(self.device), layers, norm=norm)
        return [Tokens(*(part.float() for part in tokens)) for tokens in found]

    @torch.inference_mode()
    def attention(self, batch: Tensor, *, layer: int = -1, queries: Sequence[int] | None = None) -> Tensor:
        """Return the attention weights (B, heads, Q, N) of one block; see `VisionTransformer.attention`."""
        with torch.autocast(self.device.type, dtype=_DTYPES[self.precision], enabled=self.precision != "fp32"):
            return self.backbone.attention(batch.to(self.device), layer=layer, queries=queries)

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "TorchEngine":
        """Return this engine: it has nothing to decide."""
        return self
