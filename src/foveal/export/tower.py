"""The vision tower as a model of transformers: importing this module makes AutoConfig and AutoModel know it.

No code is taken from a folder; what is registered here reads its configuration and its weights.
"""

from typing import Any

from torch import Tensor, nn

from foveal.backbone.layers import LayerScale
from foveal.backbone.variants import BackboneConfig
from foveal.backbone.vit import VisionTransformer
from foveal.engine.tower import imported
from foveal.export.vision_tower import Companion, Towers, VisionTower

imported("transformers")  # whose absence is told with the extra that brings it

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization  # noqa: E402
from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: E402


class TowerConfig(PreTrainedConfig):
    """What decides the shape of a tower.

    Attributes:
        backbone: fields of `BackboneConfig`.
        companion: configuration of CLIP or SigLIP; None where there is none.
        rescale: see `Companion`.
        image_size: pixels of a side.
        patch_size: of the backbone.
        hidden_size: width of a token.
    """

    model_type = "foveal_tower"
    backbone: dict | None = None
    companion: dict | None = None
    rescale: list | None = None
    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 384


class TowerModel(PreTrainedModel):
    """A backbone, and CLIP beside it or not, whose hidden states hold a class token and patches, as those of CLIP.

    LLaVA's own settings (`vision_feature_layer=-2`, strategy "default") then take exactly grid_h x grid_w tokens.
    """

    config_class = TowerConfig
    base_model_prefix = "tower"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        companion = None
        if config.companion is not None:
            settings = dict(config.companion)
            whole = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
            rescale = tuple(config.rescale or ())
            companion = Companion(getattr(whole, "vision_model", whole), rescale=rescale)
        self.towers = Towers(VisionTransformer(BackboneConfig.model_validate(config.backbone)), companion)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionTransformer):
            for name, parameter in module.named_parameters(recurse=False):
                draw = initialization.zeros_ if name == "mask_token" else initialization.normal_
                draw(parameter, **({} if name == "mask_token" else {"std": 0.02}))
        elif isinstance(module, LayerScale):
            initialization.constant_(module.gamma, self.towers.backbone.config.layerscale_init)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Return hidden states (B, 1 + P, D); the last is before the final norm, as CLIP's is.

        Args:
            pixel_values: (B, C, H, W), normalised; H and W multiples of the patch size.
            kwargs: what callers pass to every model; all hidden states are given whatever they ask for.
        """
        states = self.towers.states(pixel_values.to(self.dtype))
        return BaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            hidden_states=tuple(states),
        )


def tower_model(tower: VisionTower) -> TowerModel:
    """Return a tower as a model of transformers, with a copy of its weights."""
    backbone, companion = tower.towers.backbone, tower.towers.companion
    config = TowerConfig(
        backbone=backbone.config.model_dump(mode="json"),
        companion=companion.network.config.to_dict() if companion else None,
        rescale=list(companion.rescale) if companion else None,
        image_size=tower.image_size,
        patch_size=backbone.config.patch_size,
        hidden_size=tower.hidden_size,
    )
    model = TowerModel(config)
    model.towers.load_state_dict(tower.towers.state_dict())
    return model.eval()


AutoConfig.register(TowerConfig.model_type, TowerConfig, exist_ok=True)
AutoModel.register(TowerConfig, TowerModel, exist_ok=True)
