"""The same weights in the implementation of the `transformers` package give the same tokens.

At the native size only: there it resizes no positional embedding, which it does by size and not by the offset factor.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from foveal.backbone.vit import VisionTransformer

transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5  # float32, values of order 1, sums in another order
BLOCK_KEYS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "attention.o_proj.weight",
    "attn.proj.bias": "attention.o_proj.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "mlp.w3.weight": "mlp.down_proj.weight",
    "mlp.w3.bias": "mlp.down_proj.bias",
}
OUTER_KEYS = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


def _peer_weights(network: VisionTransformer) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in network.state_dict().items():
        if name in OUTER_KEYS:
            renamed[OUTER_KEYS[name]] = tensor
            continue
        _, block, rest = name.split(".", 2)
        stem = f"encoder.layer.{block}."
        part = rest.rsplit(".", 1)[1]
        if rest.startswith("attn.qkv."):
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{stem}attention.{letter}_proj.{part}"] = rows
        elif rest.startswith("mlp.w12."):
            for half, rows in zip(("gate", "up"), tensor.chunk(2), strict=True):
                renamed[f"{stem}mlp.{half}_proj.{part}"] = rows
        else:
            renamed[stem + BLOCK_KEYS[rest]] = tensor
    return renamed


def _peer(network: VisionTransformer) -> nn.Module:
    config = network.config
    settings = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "use_swiglu_ffn": config.ffn == "swiglu",
        "mlp_ratio": 4,
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
    }
    if config.num_registers:
        settings["num_register_tokens"] = config.num_registers
        peer = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**settings))
    else:
        peer = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    peer.load_state_dict(_peer_weights(network))
    return peer.eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("batch_size", [2, 5])
@torch.no_grad()
def test_tokens_equal_transformers(
    random_network: Callable[..., VisionTransformer], batch_size: int, num_registers: int, ffn: str, masked: bool
) -> None:
    network = random_network(ffn=ffn, num_registers=num_registers, image_size=98, seed=batch_size)
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(batch_size, 3, 98, 98, generator=generator)
    masks = torch.rand(batch_size, 49, generator=generator) < 0.4 if masked else None
    expected = _peer(network)(images, bool_masked_pos=masks).last_hidden_state
    tokens = network(images, masks)
    found = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("num_registers", [0, 4])
@torch.no_grad()
def test_attention_weights_equal_transformers(
    random_network: Callable[..., VisionTransformer], num_registers: int
) -> None:
    network = random_network(num_registers=num_registers, image_size=70)
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(7))
    peer = _peer(network)
    peer.set_attn_implementation("eager")
    expected = peer(images, output_attentions=True).attentions
    assert len(expected) == network.config.depth
    for layer, weights in enumerate(expected):
        found = network.attention(images, layer=layer)
        assert found.shape == (2, network.config.num_heads, 26 + num_registers, 26 + num_registers)
        assert found.amax() > 0.1  # far from the uniform 1/30, which any softmax of small numbers gives
        torch.testing.assert_close(found, weights, atol=TOLERANCE, rtol=0)
