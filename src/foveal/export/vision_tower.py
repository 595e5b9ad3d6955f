"""The vision tower of a vision-language model: patch tokens of the penultimate block, alone or beside CLIP's.

Shapes: B images, C channels, P patches, D width, H W pixels; grid_h x grid_w patches.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.backbone.card import Card
from foveal.backbone.vit import VisionTransformer
from foveal.engine.foreign import open_tower
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError
from foveal.export.source import open_own
from foveal.features.extract import Model, list_of
from foveal.features.preprocessing import preprocessing_of
from foveal.images.preprocess import ImageLike

COMPANIONS = ("clip_vision_model", "siglip_vision_model")


class Companion(nn.Module):
    """A CLIP or SigLIP tower that sees the same pictures, its tokens moved to the backbone's grid.

    Args:
        network: of transformers; see `COMPANIONS`.
        rescale: (mean, std) of the pixels that come, and (mean, std) of those that it takes, by channel.
    """

    def __init__(self, network: Any, *, rescale: tuple[list[float], list[float], list[float], list[float]]) -> None:
        super().__init__()
        settings = network.config
        self.network, self.rescale = network, rescale
        self.width, self.patch_size = int(settings.hidden_size), int(settings.patch_size)
        self.image_size = settings.image_size // self.patch_size * self.patch_size

    def states(self, pixels: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """Return (B, 1 + P, D) of the embedding and after each block; P patches on the backbone's grid.

        A tower without a class token (SigLIP) gives the mean of its patches in its place. Grids that differ are resized
        bilinearly, antialiased.
        """
        mean, std, own_mean, own_std = (pixels.new_tensor(one)[:, None, None] for one in self.rescale)
        pixels = (pixels * std + mean - own_mean) / own_std
        found = self.network(pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        own_grid = (pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size)
        return [self._on_grid(state, own_grid, grid) for state in found.hidden_states]

    def _on_grid(self, state: Tensor, own_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        num_patches = own_grid[0] * own_grid[1]
        patches = state[:, -num_patches:]
        cls = state[:, :1] if state.shape[1] > num_patches else patches.mean(dim=1, keepdim=True)
        if own_grid != grid:
            maps = patches.transpose(1, 2).unflatten(2, own_grid)
            maps = F.interpolate(maps, size=grid, mode="bilinear", antialias=True, align_corners=False)
            patches = maps.flatten(2).transpose(1, 2)
        return torch.cat([cls, patches], dim=1)


class Towers(nn.Module):
    """A backbone, and beside it a companion or none; their tokens side by side along the width."""

    def __init__(self, backbone: VisionTransformer, companion: Companion | None = None) -> None:
        super().__init__()
        if backbone.config.depth < 2:
            raise FovealError("a backbone of one block has no penultimate one; choose a deeper backbone")
        self.backbone, self.companion = backbone, companion

    @property
    def hidden_size(self) -> int:
        """Width of a token."""
        return self.backbone.config.width + (self.companion.width if self.companion else 0)

    def states(self, pixels: Tensor) -> list[Tensor]:
        """Return (B, 1 + P, D) after each block, before any norm, the embedding first; registers are left out.

        With a companion of another depth, states are put together from the last one backwards.
        """
        backbone = self.backbone
        x, groups = backbone.embed([pixels], [None])
        embedded = x.view(groups[0].num_images, groups[0].num_tokens, -1)
        own = [torch.cat([embedded[:, :1], embedded[:, backbone.num_prefix_tokens :]], dim=1)]
        for tokens in backbone.intermediate(pixels, range(backbone.config.depth), norm=False):
            own.append(torch.cat([tokens.cls[:, None], tokens.patches], dim=1))
        if self.companion is None:
            return own
        others = self.companion.states(pixels, backbone.grid_of(pixels))
        count = min(len(own), len(others))
        return [torch.cat(pair, dim=-1) for pair in zip(own[-count:], others[-count:], strict=True)]

    def patches(self, pixels: Tensor) -> Tensor:
        """Return the patch tokens (B, P, D) of the penultimate state; the backbone's last block does not run."""
        backbone = self.backbone
        own = backbone.intermediate(pixels, [backbone.config.depth - 2], norm=False)[0].patches
        if self.companion is None:
            return own
        return torch.cat([own, self.companion.states(pixels, backbone.grid_of(pixels))[-2][:, 1:]], dim=-1)


class VisionTower(nn.Module):
    """Gives what a vision-language model such as LLaVA (arXiv 2310.03744) reads of pictures.

    These are the patch tokens after the last but one block, before the final norm, without class token and registers,
    row by row. All weights are frozen; gradients flow through those that `requires_grad_` sets free.

    Args:
        model: a model folder, a checkpoint, a name in `foveal models`, or what `foveal.load(..., engine="torch")` gave;
            its network is then shared, and frozen.
        clip: folder or name of a CLIP or SigLIP model of transformers, whose tokens are put beside along the width.
        image_size: pixels of a side; None is the companion's, else that of the card.

    Attributes:
        hidden_size: width of a token.
        image_size: pixels of a side that `preprocess` cuts to.
        num_patches: tokens of a picture of that size.

    Raises:
        FovealError: a backbone of another library or of one block, a size that is no multiple of the patch size, or a
            companion that is neither CLIP nor SigLIP or takes another size.

    Example:
        >>> tower = foveal.VisionTower("model")  # doctest: +SKIP
        >>> tower(tower.preprocess("cat.jpg")).shape  # doctest: +SKIP
        torch.Size([1, 256, 384])
    """

    def __init__(
        self, model: str | Path | Model, *, clip: str | Path | None = None, image_size: int | None = None
    ) -> None:
        super().__init__()
        backbone, card = _opened(model)
        companion = None if clip is None else open_companion(clip, card)
        if image_size is None:
            image_size = companion.image_size if companion else card.crop_size
        self._preprocess = preprocessing_of(card, size=image_size)
        if companion is not None and companion.image_size != image_size:
            raise FovealError(
                f"{clip} takes {companion.image_size} x {companion.image_size} pixels, not {image_size}; give "
                f"image_size={companion.image_size}, or another CLIP"
            )
        self.towers = Towers(backbone, companion)
        self.card, self.image_size, self.hidden_size = card, image_size, self.towers.hidden_size
        self.num_patches = (image_size // backbone.config.patch_size) ** 2
        self.requires_grad_(False).eval()

    def preprocess(self, images: ImageLike | list[ImageLike]) -> Tensor:
        """Return pictures (paths, Pillow images or arrays) as (B, C, image_size, image_size) float32, normalised."""
        return torch.from_numpy(np.stack([self._preprocess(one) for one in list_of(images)]))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return patch tokens (B, grid_h * grid_w, hidden_size).

        Args:
            pixel_values: (B, C, H, W), normalised as of `preprocess`; H and W any multiples of the patch size.
        """
        return self.towers.patches(pixel_values)


def open_companion(clip: str | Path, card: Card) -> Companion:
    """Open a CLIP or SigLIP model of transformers, with its weights; FovealError for any other."""
    if card.backbone.channels != 3:
        raise FovealError(f"{card.name} takes {card.backbone.channels} channels, and CLIP three; leave it out")
    tower = open_tower(f"hf:{clip}")
    kind = getattr(tower.module.config, "model_type", "")
    if kind not in COMPANIONS:
        raise FovealError(f"{clip} is a {kind}; give a CLIP or SigLIP model of transformers")
    return Companion(tower.module, rescale=(card.mean, card.std, tower.mean, tower.std))


def _opened(model: str | Path | Model) -> tuple[VisionTransformer, Card]:
    if not isinstance(model, Model):
        return open_own(model)
    if not isinstance(model.engine, TorchEngine):
        raise FovealError(f"{model.card.name} runs on {model.engine.description['name']}; load it with engine='torch'")
    return model.engine.backbone, model.card
