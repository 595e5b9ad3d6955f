"""A `VisionTower` as a model of transformers: importing this module lets `AutoModel` open folders of
`foveal export tower`. No code comes from such a folder.
"""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.export.tower import DEFAULT_LAYER, OtherTower, VisionTower

MODEL_TYPE = "foveal_vision_tower"


class VisionTowerConfig(transformers.PreTrainedConfig):
    """The configuration of a tower.

    Attributes:
        backbone: fields of `BackboneConfig`.
        mean: of the normalisation.
        std: of the normalisation.
        layer: whose tokens are given; see `VisionTower`.
        other: configuration of the second tower with its `model_type`, and its `mean` and `std`; None: there is none.
        hidden_size: width of a token, both towers together.
        image_size: pixels; with `patch_size` it tells processors how many tokens an image becomes.
        patch_size: pixels.
    """

    model_type = MODEL_TYPE
    backbone: dict[str, Any] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    layer: int = DEFAULT_LAYER
    other: dict[str, Any] | None = None
    hidden_size: int = 384
    image_size: int = 224
    patch_size: int = 14


def config_of(tower: VisionTower, *, image_size: int) -> VisionTowerConfig:
    """Return the configuration of a tower whose images have a side of `image_size` pixels."""
    other = None
    if tower.other is not None:
        other = {
            "config": tower.other.network.config.to_dict(),
            "mean": list(tower.other.mean),
            "std": list(tower.other.std),
        }
    return VisionTowerConfig(
        backbone=tower.config.model_dump(mode="json"),
        mean=list(tower.mean),
        std=list(tower.std),
        layer=tower.layer,
        other=other,
        hidden_size=tower.hidden_size,
        image_size=image_size,
        patch_size=tower.config.patch_size,
    )


def tower_of(config: VisionTowerConfig) -> VisionTower:
    """Return the tower that a configuration describes, with weights as drawn."""
    other = None
    if config.other is not None:
        values = dict(config.other["config"])
        vision = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        other = OtherTower(
            transformers.AutoModel.from_config(vision), mean=config.other["mean"], std=config.other["std"]
        )
    backbone = VisionTransformer(BackboneConfig.model_validate(config.backbone))
    return VisionTower(backbone, mean=config.mean or [], std=config.std or [], layer=config.layer, other=other)


class VisionTowerModel(transformers.PreTrainedModel):
    """A tower among the models of transformers.

    Every hidden state that it gives is that of the tower's one layer, with patch tokens only: whichever
    `vision_feature_layer` a LLaVA has, with `vision_feature_select_strategy="full"` it reads all of them and no other.
    transformers makes weights trainable when it loads them: freeze it by `requires_grad_(False)`.
    """

    config_class = VisionTowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__(config)
        self.tower = tower_of(config)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Leave weights as the tower draws them."""

    def forward(self, pixel_values: Tensor, **_: object) -> BaseModelOutput:
        """Return tokens (B, P, hidden_size) of normalised images (B, C, H, W)."""
        tokens = self.tower(pixel_values.to(self.dtype))
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens, tokens))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.tower.backbone.pos_embed.dtype


transformers.AutoConfig.register(MODEL_TYPE, VisionTowerConfig, exist_ok=True)
transformers.AutoModel.register(VisionTowerConfig, VisionTowerModel, exist_ok=True)
