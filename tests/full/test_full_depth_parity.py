"""The whole ViT-S, ViT-B and ViT-L against `transformers` at their own size, from its files, in float32."""

import importlib.util
from pathlib import Path

import pytest
import torch

from foveal.backbone.formats import load_checkpoint

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

# Width, heads, blocks, side in pixels (ViT-L has fewer, for time), and how far float32 sums in another order may lead.
SIZES = {"vits": (384, 6, 12, 518, 2e-5), "vitb": (768, 12, 12, 518, 2e-5), "vitl": (1024, 16, 24, 98, 1e-4)}


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("variant", SIZES)
@torch.no_grad()
def test_all_blocks_give_the_same_tokens(variant: str, num_registers: int, tmp_path: Path) -> None:
    import transformers

    width, heads, depth, side, tolerance = SIZES[variant]
    settings = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": depth}
    settings |= {"image_size": side, "patch_size": 14}
    if num_registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=num_registers, **settings)
        peer = transformers.Dinov2WithRegistersModel(config).eval()
    else:
        peer = transformers.Dinov2Model(transformers.Dinov2Config(**settings)).eval()
    peer.save_pretrained(tmp_path / "hf")
    network, card = load_checkpoint(tmp_path / "hf")
    assert (card.backbone.variant, card.backbone.num_registers) == (variant, num_registers)
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    wanted = peer(images).last_hidden_state
    tokens = network(images)
    found = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)
