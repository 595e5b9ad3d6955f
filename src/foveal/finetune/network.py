"""The network that is fine-tuned: a backbone with gradients, and the head that reads its blocks.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveal.backbone.vit import Tokens, VisionTransformer
from foveal.errors import FovealError
from foveal.finetune.settings import FinetuneSettings
from foveal.pretrain.optimizer import layer_id
from foveal.pretrain.start.lora import add_low_rank
from foveal.pretrain.start.settings import LoRA
from foveal.tasks import classify
from foveal.tasks.dense import levels_of
from foveal.tasks.fit import seen
from foveal.tasks.head import Head, HeadCard


class Network(nn.Module):
    """A backbone and a head, under names by which their parameters are grouped.

    Args:
        backbone: changed in place: trained as the settings say.
        head: whose network is trained too.
        settings: see there.

    Raises:
        FovealError: settings that do not fit the backbone.
    """

    def __init__(self, backbone: VisionTransformer, head: Head, settings: FinetuneSettings) -> None:
        super().__init__()
        check_backbone_settings(settings, width=backbone.config.width, depth=backbone.config.depth)
        self.card: HeadCard = head.card
        self.reduced = settings.precision == "bf16"
        self.backbone = _prepared(backbone, settings)
        self.head = head.network.train().requires_grad_()

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the logits (B, K) or maps (B, K, H, W) of the head for normalised images (B, C, H, W).

        Args:
            images: on the device of the network.
            generator: source of the stochastic-depth draws; None switches stochastic depth off.
        """
        patch_size = self.backbone.config.patch_size
        encoder = _WithGradients(self.backbone, generator, reduced=self.reduced)
        if self.card.task == "classification":
            found = encoder.intermediate(images, self.card.layers)
            return self.head(classify.Tokens(torch.stack([one.cls for one in found], dim=1), found[-1].patches))
        levels, window = levels_of(encoder, images, layers=self.card.layers, norm=self.card.norm, patch_size=patch_size)
        return seen(self.head(levels), window, patch_size=patch_size)


class _WithGradients:
    """A backbone as an encoder of one training step; tokens leave it as float32."""

    def __init__(self, backbone: VisionTransformer, generator: torch.Generator | None, *, reduced: bool) -> None:
        self._backbone, self._generator, self._reduced = backbone, generator, reduced

    def intermediate(self, batch: Tensor, layers: Sequence[int], *, norm: bool = True) -> list[Tokens]:
        with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=self._reduced):
            found = self._backbone.intermediate(batch, layers, norm=norm, generator=self._generator)
        return [Tokens(*(part.float() for part in tokens)) for tokens in found]


def low_rank(settings: FinetuneSettings) -> LoRA | None:
    """Return rank and alpha of the low-rank changes, if there are any: alpha is twice the rank, as in adaptation."""
    return None if settings.lora_rank is None else LoRA(rank=settings.lora_rank, alpha=2 * settings.lora_rank)


def check_backbone_settings(settings: FinetuneSettings, *, width: int, depth: int) -> None:
    """Refuse settings that do not fit a backbone of this width and number of blocks."""
    if settings.freeze_blocks > depth:
        raise FovealError(
            f"freeze_blocks={settings.freeze_blocks} of a backbone with {depth} blocks; give {depth} or less"
        )
    if settings.lora_rank is None:
        return
    if settings.lora_rank > width:
        raise FovealError(f"lora_rank={settings.lora_rank} is above the backbone's width {width}; use that or less")
    if settings.freeze_blocks == depth:
        raise FovealError(f"lora_rank has no effect while all {depth} blocks are frozen; leave one of the two out")


def _prepared(backbone: VisionTransformer, settings: FinetuneSettings) -> VisionTransformer:
    backbone.config = backbone.config.model_copy(update={"drop_path_rate": settings.drop_path})
    backbone.recompute_blocks = settings.recompute
    backbone.requires_grad_()
    if lora := low_rank(settings):
        generator = torch.Generator().manual_seed(settings.seed)
        add_low_rank(backbone, rank=lora.rank, alpha=lora.alpha, generator=generator)
    if settings.freeze_blocks:
        for name, parameter in backbone.named_parameters():
            if layer_id(name, depth=len(backbone.blocks)) <= settings.freeze_blocks:
                parameter.requires_grad_(False)
    return backbone
