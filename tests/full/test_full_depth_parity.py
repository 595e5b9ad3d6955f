"""The whole ViT-S and ViT-B at 518 pixels against `transformers`, from its files, in float32."""

import importlib.util
from pathlib import Path

import pytest
import torch

from foveal.backbone.formats import load_checkpoint

pytestmark = pytest.mark.full

SIZES = {"vits": (384, 6), "vitb": (768, 12)}


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("variant", SIZES)
@torch.no_grad()
def test_twelve_blocks_give_the_same_tokens(variant: str, num_registers: int, tmp_path: Path) -> None:
    import transformers

    width, heads = SIZES[variant]
    settings = {"hidden_size": width, "num_attention_heads": heads, "image_size": 518, "patch_size": 14}
    if num_registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=num_registers, **settings)
        peer = transformers.Dinov2WithRegistersModel(config).eval()
    else:
        peer = transformers.Dinov2Model(transformers.Dinov2Config(**settings)).eval()
    peer.save_pretrained(tmp_path / "hf")
    network, card = load_checkpoint(tmp_path / "hf")
    assert (card.backbone.variant, card.backbone.num_registers) == (variant, num_registers)
    images = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    wanted = peer(images).last_hidden_state
    tokens = network(images)
    found = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
