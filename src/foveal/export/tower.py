"""The tower that a vision-language model looks through: patch tokens of a late block, and nothing else.

Source: LLaVA, arXiv 2310.03744: features of the last block but one, without the class token; two towers side by side
as in Tong et al., arXiv 2401.06209 ("additive" and "interleaved" mixtures; here along the channels).

Shapes: B images, C channels, D width, P patches, H W pixels; grid_h x grid_w patches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.errors import FovealError
from foveal.export.source import open_own

DEFAULT_LAYER = -2


class VisionTower(nn.Module):
    """A frozen backbone as a vision-language model needs it: normalised images in, one token a patch out.

    Tokens are those after block `layer` before the final norm, as the hidden states of transformers are counted: -1 is
    the last block, -2 the one before. Class token and registers are left out.

    A second tower of transformers (CLIP or SigLIP) may stand beside: it sees the same images with its own
    normalisation, resized to its own size, and its tokens, bilinearly resampled to the grid of the first, are
    appended to each token.

    Args:
        backbone: the network.
        mean: of its normalisation, by channel.
        std: of its normalisation, by channel.
        layer: see above; negative.
        other: the second tower, or None.

    Example:
        >>> tower = VisionTower.load("model")  # doctest: +SKIP
        >>> tower(torch.zeros(1, 3, 224, 224)).shape  # doctest: +SKIP
        torch.Size([1, 256, 384])
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        layer: int = DEFAULT_LAYER,
        other: "OtherTower | None" = None,
    ) -> None:
        super().__init__()
        if not -backbone.config.depth <= layer <= -1:
            raise FovealError(
                f"layer={layer} of a backbone with {backbone.config.depth} blocks; "
                f"choose -1 (the last) to -{backbone.config.depth}"
            )
        if other is not None and backbone.config.channels != 3:
            raise FovealError(
                f"a second tower sees RGB, and this backbone {backbone.config.channels} channels; leave it out"
            )
        self.backbone = backbone
        self.layer = layer
        self.other = other
        self.mean, self.std = tuple(mean), tuple(std)
        self.requires_grad_(False)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        layer: int = DEFAULT_LAYER,
        other: str | Path | None = None,
        num_heads: int | None = None,
    ) -> "VisionTower":
        """Open a model as a tower, frozen and in evaluation mode.

        Args:
            model: a model folder, a checkpoint, or a name in `foveal models`.
            layer: see the class.
            other: folder of a CLIP or SigLIP model of transformers.
            num_heads: attention heads, where neither the files nor the width tell.

        Raises:
            FovealError: a model of another library, a layer that there is not, transformers missing for `other`.
        """
        backbone, card = open_own(model, num_heads=num_heads)
        beside = OtherTower.load(other) if other is not None else None
        return cls(backbone, mean=card.mean, std=card.std, layer=layer, other=beside).eval()

    @property
    def config(self) -> BackboneConfig:
        """The configuration of the backbone."""
        return self.backbone.config

    @property
    def hidden_size(self) -> int:
        """The width of a token, both towers together."""
        return self.config.width + (self.other.hidden_size if self.other else 0)

    def num_patches(self, height: int, width: int) -> int:
        """Return how many tokens an image becomes: grid_h x grid_w."""
        return (height // self.config.patch_size) * (width // self.config.patch_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return one token a patch, row after row.

        Args:
            pixel_values: (B, C, H, W), normalised as the backbone's card says; H and W multiples of the patch size.

        Returns:
            (B, grid_h grid_w, hidden_size).
        """
        number = self.config.depth + self.layer
        patches = self.backbone.intermediate(pixel_values, [number], norm=False)[0].patches
        if self.other is None:
            return patches
        rgb = pixel_values * _by_channel(self.std, pixel_values) + _by_channel(self.mean, pixel_values)
        grid = (pixel_values.shape[2] // self.config.patch_size, pixel_values.shape[3] // self.config.patch_size)
        return torch.cat([patches, self.other(rgb, grid)], dim=-1)


class OtherTower(nn.Module):
    """The image side of a CLIP or SigLIP model of transformers: tokens of its last block but one.

    Args:
        network: a vision model of transformers that returns `hidden_states`.
        mean: of its normalisation.
        std: of its normalisation.
    """

    def __init__(self, network: Any, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = tuple(mean), tuple(std)

    @classmethod
    def load(cls, folder: str | Path) -> "OtherTower":
        """Open a folder of transformers; FovealError where it holds no CLIP or SigLIP, or transformers is missing."""
        transformers = import_transformers()
        if not (Path(folder) / "config.json").is_file():
            raise FovealError(f"{folder} holds no config.json; give the folder of a CLIP or SigLIP model")
        config = transformers.AutoConfig.from_pretrained(folder)
        vision = getattr(config, "vision_config", config)
        kinds = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}
        if vision.model_type not in kinds:
            raise FovealError(f"{folder} is a {vision.model_type}; a second tower is one of {', '.join(sorted(kinds))}")
        network = getattr(transformers, kinds[vision.model_type]).from_pretrained(folder)
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        return cls(network.eval(), mean=processor.image_mean, std=processor.image_std)

    @property
    def hidden_size(self) -> int:
        """The width of a token."""
        return int(self.network.config.hidden_size)

    def forward(self, rgb: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens (B, grid_h grid_w, hidden_size) of images (B, 3, H, W) in 0..1, resampled to a grid."""
        config = self.network.config
        side = int(config.image_size)
        small = F.interpolate(rgb.float(), size=(side, side), mode="bicubic", antialias=True).to(rgb.dtype)
        pixels = (small - _by_channel(self.mean, small)) / _by_channel(self.std, small)
        tokens = self.network(pixel_values=pixels, output_hidden_states=True).hidden_states[DEFAULT_LAYER]
        own = side // int(config.patch_size)
        maps = tokens[:, -own * own :].transpose(1, 2).unflatten(2, (own, own))  # CLIP has a class token before them
        if (own, own) != grid:
            maps = F.interpolate(maps.float(), size=grid, mode="bilinear", align_corners=False).to(tokens.dtype)
        return maps.flatten(2).transpose(1, 2)


def _by_channel(values: Sequence[float], images: Tensor) -> Tensor:
    return images.new_tensor(values)[:, None, None]


def import_transformers() -> Any:
    """Import transformers; FovealError names the extra where it is missing."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise FovealError("transformers is not installed; run pip install 'foveal[foreign]'") from error
    return transformers
