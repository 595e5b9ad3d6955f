"""Networks whose every parameter is random, so that nothing is hidden by a zero, a one or a tiny LayerScale."""

from collections.abc import Callable

import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer


def _random_network(variant: str = "vit_nano", *, seed: int = 0, **changes: object) -> VisionTransformer:
    network = VisionTransformer(backbone_config(variant, **changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")) else 0.0
            spread = 0.5 if parameter.ndim == 1 or "token" in name or "pos" in name else 0.1
            parameter.copy_(around + spread * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(scope="session")
def random_network() -> Callable[..., VisionTransformer]:
    return _random_network
