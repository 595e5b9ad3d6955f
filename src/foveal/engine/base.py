"""What every engine offers: images in, tokens out, and a description of how they were computed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from foveal.backbone.vit import Tokens

Precision = Literal["fp32", "bf16", "fp16"]


class Engine(Protocol):
    """Runs a backbone without gradients: normalised images in, float32 tokens on some device out."""

    @property
    def description(self) -> dict[str, str]:
        """Return what a stamp says of the engine: name, precision, device, and the version of the library."""
        ...

    @property
    def identity(self) -> str:
        """Return a hash of the network's weights and configuration, whatever file they came in."""
        ...

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm; `batch` is (B, C, H, W) float32."""
        ...

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks (the last n, or a list of numbers from 0), in ascending order."""
        ...

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> "Engine":
        """Decide what there is to decide before the first batch, and return the engine that decides nothing more.

        Args:
            images: of the set that will be encoded: batches (B, C, H, W) float32, each of one size. They are read only
                where there is something to decide.
            layers: blocks that will be asked for, through the final norm; None is the last.
            folder: where a store keeps what was decided, and finds it again; None decides for this process.
        """
        ...
