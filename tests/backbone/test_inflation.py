import doctest

import pytest
import torch

from foveal.backbone import channels as module
from foveal.backbone.channels import inflate_patch_embedding
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.errors import WeightsError


def network(channels: int) -> VisionTransformer:
    config = backbone_config("vit_nano", depth=2, patch_size=7, image_size=21, channels=channels, layerscale_init=1.0)
    return VisionTransformer(config).init_weights(torch.Generator().manual_seed(1)).eval()


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 4), (3, 9), (1, 3), (5, 2)])
def test_a_picture_with_all_channels_alike_keeps_its_features(old: int, new: int) -> None:
    """Up to fp32 rounding of two orders of summation."""
    before, after = network(old), network(new)
    after.load_state_dict(inflate_patch_embedding(before.state_dict(), channels=new))
    grey = torch.randn(2, 1, 14, 28, generator=torch.Generator().manual_seed(2))
    expected = before(grey.expand(-1, old, -1, -1))
    found = after(grey.expand(-1, new, -1, -1))
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=2e-5)


def test_kernels_are_the_sum_over_the_new_count() -> None:
    state = network(3).state_dict()
    inflated = inflate_patch_embedding(state, channels=5)
    kernel, name = state["patch_embed.proj.weight"], "patch_embed.proj.weight"
    for c in range(5):
        assert torch.allclose(inflated[name][:, c], (kernel[:, 0] + kernel[:, 1] + kernel[:, 2]) / 5, atol=1e-7)
    assert all(inflated[key] is state[key] for key in state if key != name)
    assert torch.equal(inflate_patch_embedding(state, channels=3)[name], kernel)


def test_other_weights_and_no_channel_are_refused() -> None:
    with pytest.raises(WeightsError, match="hold no patch_embed"):
        inflate_patch_embedding({"x": torch.zeros(1)}, channels=4)
    with pytest.raises(WeightsError, match="channels=0"):
        inflate_patch_embedding(network(1).state_dict(), channels=0)


def test_example_in_the_docstring() -> None:
    assert doctest.testmod(module).failed == 0
