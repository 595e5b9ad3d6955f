"""What engines of exported graphs share: they take normalised images and give outputs by name."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from foveal.backbone.variants import BackboneConfig, multiple_of_patch
from foveal.backbone.vit import Tokens
from foveal.errors import FovealError


class GraphEngine(ABC):
    """Runs an exported graph: normalised images in, float32 tokens and what heads say out.

    A subclass opens the graph and computes outputs with `infer`.

    Args:
        path: of the graph, for messages.
        config: of the backbone inside.
        identity: of the backbone; see `identity_of`.
        output_names: those of the graph.
    """

    def __init__(self, path: Path, *, config: BackboneConfig, identity: str, output_names: Sequence[str]) -> None:
        self.path, self.config, self.identity = path, config, identity
        self.output_names = list(output_names)

    @property
    @abstractmethod
    def description(self) -> dict[str, str]:
        """Return what a stamp says of this engine."""

    @abstractmethod
    def infer(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
        """Return outputs of the graph, in the order of their names."""

    def encode(self, batch: Tensor) -> Tokens:
        """Return the tokens of the last block after the final norm.

        Args:
            batch: (B, C, H, W) float32, normalised; H and W multiples of the patch size.
        """
        wanted = [name for name in ("cls", "patches", "registers") if name in self.output_names]
        found = {name: torch.from_numpy(array) for name, array in self.outputs(batch, wanted).items()}
        cls = found["cls"]
        return Tokens(cls, found.get("registers", cls.new_empty(len(cls), 0, cls.shape[1])), found["patches"])

    def outputs(self, batch: Tensor, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return outputs of the graph by name.

        Args:
            batch: as of `encode`.
            names: those wanted; None is all.

        Raises:
            FovealError: channels or sizes that the backbone does not take, or an output that there is not.
        """
        names = self.output_names if names is None else list(names)
        if missing := [name for name in names if name not in self.output_names]:
            raise FovealError(f"{self.path} has no output {missing[0]}; it has {', '.join(self.output_names)}")
        return dict(zip(names, self.infer({"images": self.pixels(batch)}, names), strict=True))

    def intermediate(self, batch: Tensor, layers: int | Sequence[int], *, norm: bool = True) -> list[Tokens]:
        """Return the tokens after chosen blocks; FovealError where the graph gives those of the last one only."""
        raise FovealError(f"{self.path} gives the tokens of the last block only; export onnx for those of others")

    def settle(
        self, images: Iterable[Tensor], layers: Sequence[int] | None = None, *, folder: Path | None = None
    ) -> Self:
        """Return this engine: it has nothing to decide."""
        return self

    def takes(self, shape: Sequence[int]) -> bool:
        """Say whether the graph takes images of a shape (B, C, H, W): any, unless it was built for some."""
        return True

    def pixels(self, batch: Tensor) -> np.ndarray:
        """Return images as the graph takes them; FovealError for channels or sizes that the backbone does not take."""
        _, channels, height, width = batch.shape
        if channels != self.config.channels:
            raise FovealError(f"images have {channels} channels; this backbone takes {self.config.channels}")
        for name, size in (("image height", height), ("image width", width)):
            if size % self.config.patch_size or size == 0:
                raise FovealError(multiple_of_patch(name, size, self.config.patch_size) + " (resize or pad first)")
        return batch.detach().to("cpu", torch.float32).contiguous().numpy()
