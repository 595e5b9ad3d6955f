"""Weights fitted to other inputs: what is kept stays to the bit, what is new is told, what would be lost is refused."""

import pytest
import torch

from foveal.backbone.refit import refit
from foveal.backbone.variants import BackboneConfig, backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.errors import WeightsError

OLD = backbone_config("vit_nano", depth=2, patch_size=4, image_size=20, layerscale_init=0.5)


def network(config: BackboneConfig, seed: int = 0) -> VisionTransformer:
    return VisionTransformer(config).init_weights(torch.Generator().manual_seed(seed)).eval()


def refitted(old: VisionTransformer, **changes: object) -> tuple[VisionTransformer, list[str]]:
    values = old.config.model_dump() | {"pos_embed_resize": old.config.resize_mode} | changes
    config = BackboneConfig.model_validate(values)
    state, new = refit(old, config, generator=torch.Generator().manual_seed(1))
    other = VisionTransformer(config)
    other.load_state_dict(state)
    return other.eval(), new


def test_equal_networks_take_all_weights_and_nothing_is_new() -> None:
    old = network(OLD)
    other, new = refitted(old)
    assert new == []
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("size", [12, 28])
@pytest.mark.parametrize("num_registers", [0, 3])
def test_a_stored_grid_of_another_size_keeps_the_features_at_that_size(size: int, num_registers: int) -> None:
    old = network(backbone_config("vit_nano", depth=2, patch_size=4, image_size=20, num_registers=num_registers))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    other, new = refitted(old, image_size=size)
    assert torch.equal(other(images).cls, old(images).cls)
    assert new == [f"pos_embed: resized from 5 x 5 to {size // 4} x {size // 4}"]


def test_registers_come_behind_those_there_are_and_leave_the_others_as_they_are() -> None:
    old = network(backbone_config("vit_nano", depth=2, patch_size=4, image_size=20, num_registers=2))
    other, new = refitted(old, num_registers=5)
    assert torch.equal(other.register_tokens[:, :2], old.register_tokens)
    assert other.register_tokens[:, 2:].abs().max() < 1e-4
    assert new == ["register_tokens: 3 new beside 2"]
    again, _ = refitted(old, num_registers=5)
    assert torch.equal(again.register_tokens, other.register_tokens)


def test_first_registers_do_not_change_how_positions_are_resized() -> None:
    old = network(OLD)
    other, _ = refitted(old, num_registers=4)
    assert other.config.resize_mode == "offset"
    assert torch.equal(other.position(7, 3)[1], old.position(7, 3)[1])


def test_a_grey_picture_is_embedded_as_before_by_five_channels() -> None:
    old = network(OLD)
    other, new = refitted(old, channels=5)
    grey = torch.randn(2, 1, 20, 20, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        other(grey.expand(-1, 5, -1, -1)).cls, old(grey.expand(-1, 3, -1, -1)).cls, rtol=1e-4, atol=1e-5
    )
    assert new == ["patch_embed.proj.weight: 5 channels from 3"]


def test_other_widths_and_patches_are_named() -> None:
    with pytest.raises(WeightsError, match="width is 48 in the weights and 128 here"):
        refitted(network(OLD), width=128, num_heads=4)
    with pytest.raises(WeightsError, match="patch_size is 4 in the weights and 5 here"):
        refitted(network(OLD), patch_size=5)


def test_registers_are_never_dropped() -> None:
    old = network(backbone_config("vit_nano", depth=2, patch_size=4, image_size=20, num_registers=2))
    with pytest.raises(WeightsError, match="use 2 or more"):
        refitted(old, num_registers=1)
