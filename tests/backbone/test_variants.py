import pytest
import torch

from foveal.backbone.variants import VARIANTS, backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.errors import RecipeError

# arXiv 2304.07193, appendix; counted with the 518 px positional embedding, as the public weights are stored.
PUBLISHED = [
    ("vits", 0, 22_056_576),
    ("vits", 4, 22_058_112),
    ("vitb", 0, 86_580_480),
    ("vitb", 4, 86_583_552),
    ("vitl", 0, 304_368_640),
    ("vitl", 4, 304_372_736),
    ("vitg", 0, 1_136_480_768),
    ("vitg", 4, 1_136_486_912),
]


@pytest.mark.parametrize(("variant", "num_registers", "num_parameters"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(variant: str, num_registers: int, num_parameters: int) -> None:
    with torch.device("meta"):
        network = VisionTransformer(backbone_config(variant, num_registers=num_registers))
    assert sum(p.numel() for p in network.parameters()) == num_parameters


@pytest.mark.parametrize(("width", "hidden"), [(384, 1024), (768, 2048), (1024, 2736), (1536, 4096)])
def test_swiglu_hidden_width_is_the_published_one(width: int, hidden: int) -> None:
    assert backbone_config("custom", width=width, depth=1, num_heads=1, ffn="swiglu").ffn_hidden == hidden


def test_every_variant_has_heads_that_divide_its_width() -> None:
    for name in VARIANTS:
        config = backbone_config(name)
        assert config.width % config.num_heads == 0
        assert config.variant == name


def test_a_field_given_beside_the_variant_wins() -> None:
    config = backbone_config("vits", depth=4)
    assert (config.width, config.depth) == (384, 4)


def test_resize_mode_follows_the_registers_unless_given() -> None:
    assert backbone_config("vits").resize_mode == "offset"
    assert backbone_config("vits", num_registers=4).resize_mode == "antialias"
    assert backbone_config("vits", num_registers=4, pos_embed_resize="offset").resize_mode == "offset"


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("vit_smal", {}, "variant 'vit_smal' is not known; did you mean 'vit_small'|did you mean 'vit"),
        ("vits", {"image_size": 225}, "image_size=225 is not a multiple of patch_size=14; use 224 or 238"),
        ("vits", {"num_heads": 7}, "width=384 is not a multiple of num_heads=7"),
        ("vits", {"drop_path_rate": 1.0}, "drop_path_rate"),
        ("vits", {"patchsize": 14}, "patchsize"),
    ],
)
def test_settings_that_do_not_fit_are_named(variant: str, changes: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        backbone_config(variant, **changes)
