"""The attention weights of one block, whole or for a few queries; the parity test is in test_transformers_parity.py."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from foveal.backbone.vit import VisionTransformer
from foveal.errors import FovealError

Network = Callable[..., VisionTransformer]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))  # 2 x 3 patches


@torch.no_grad()
def test_rows_are_distributions_and_explain_the_block_s_output(random_network: Network, images: Tensor) -> None:
    network = random_network(num_registers=2, image_size=70).double()
    weights = network.attention(images.double(), layer=1)
    assert weights.shape == (2, network.config.num_heads, 9, 9)
    assert weights.dtype == torch.float64
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, network.config.num_heads, 9).double())
    # weights @ v, projected, is what the block's own attention returns
    x, groups = network.embed([images.double()], [None])
    normed = network.blocks[1].norm1(network.blocks[0](x, groups))
    attn = network.blocks[1].attn
    v = attn.qkv(normed).chunk(3, dim=-1)[2].view(2, 9, network.config.num_heads, -1).transpose(1, 2)
    mixed = attn.proj((weights @ v).transpose(1, 2).flatten(2).flatten(0, 1))
    torch.testing.assert_close(mixed, attn(normed, groups))


@torch.no_grad()
def test_chosen_queries_are_rows_of_the_whole(random_network: Network, images: Tensor) -> None:
    network = random_network(num_registers=2, image_size=70)
    whole = network.attention(images)
    torch.testing.assert_close(network.attention(images, queries=[0, 2, 8]), whole[:, :, [0, 2, 8]], atol=1e-6, rtol=0)
    assert torch.equal(whole, network.attention(images, layer=network.config.depth - 1))
    assert not torch.allclose(whole, network.attention(images, layer=0))


@torch.no_grad()
def test_weights_are_float32_also_under_autocast(random_network: Network, images: Tensor) -> None:
    network = random_network(image_size=70)
    exact = network.attention(images, layer=0)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.attention(images, layer=0)  # no block before it, so that only the embedding is in bf16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(found.shape[:-1]), atol=1e-6, rtol=0)
    assert (found - exact).abs().max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 3}, r"layer=3 of a backbone with 3 blocks; choose 0\.\.2, or -3\.\.-1 from the end"),
        ({"layer": -4}, "layer=-4 of a backbone"),
        ({"queries": [0, 7]}, r"queries=\[0, 7\] of 7 tokens; choose positions 0\.\.6"),
        ({"queries": [-1]}, r"queries=\[-1\] of 7 tokens"),
    ],
)
def test_layers_and_queries_that_do_not_exist_are_named(
    random_network: Network, images: Tensor, arguments: dict, message: str
) -> None:
    with pytest.raises(FovealError, match=message):
        random_network(image_size=70, depth=3).attention(images, **arguments)
