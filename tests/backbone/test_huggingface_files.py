"""Files of `transformers` through the door, at the widths of the public networks: the same tokens; and our files there.

At the native size, where neither resizes the positional embedding. Two blocks of each width here; in tests/full all.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from foveal.backbone.convert import convert
from foveal.backbone.formats import load_checkpoint, read_checkpoint
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.images.preprocess import Preprocess

transformers = pytest.importorskip("transformers")

# variant: (hidden size, heads, gated, largest difference in float32). In float64 what is left is rounding alone.
WIDTHS = {
    "vits": (384, 6, False, 2e-5),
    "vitb": (768, 12, False, 2e-5),
    "vitl": (1024, 16, False, 1e-4),
    "vitg": (1536, 24, True, 1e-4),
}
FLOAT64_TOLERANCE = 1e-9


def peer_model(variant: str, *, num_registers: int, num_blocks: int, image_size: int) -> nn.Module:
    width, heads, gated, _ = WIDTHS[variant]
    settings = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": num_blocks,
        "use_swiglu_ffn": gated,
        "image_size": image_size,
        "patch_size": 14,
        "layerscale_value": 0.5,
    }
    if num_registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=num_registers, **settings)
        peer = transformers.Dinov2WithRegistersModel(config)
    else:
        peer = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if parameter.ndim != 2 or "token" in name:  # matrices keep their initial scale; all else must show itself
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return peer.eval()


def largest_difference(peer: nn.Module, network: VisionTransformer, image_size: int, dtype: torch.dtype) -> float:
    images = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    with torch.no_grad():
        wanted = peer.to(dtype)(images).last_hidden_state
        found = network.to(dtype)(images)
    return float((torch.cat([found.cls[:, None], found.registers, found.patches], dim=1) - wanted).abs().max())


@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("variant", WIDTHS)
def test_files_of_transformers_give_the_same_tokens(variant: str, num_registers: int, tmp_path: Path) -> None:
    peer = peer_model(variant, num_registers=num_registers, num_blocks=2, image_size=70)
    peer.save_pretrained(tmp_path / "hf")
    network, card = load_checkpoint(tmp_path / "hf")
    assert (card.backbone.num_registers, card.backbone.image_size) == (num_registers, 70)
    assert largest_difference(peer, network, 70, torch.float32) <= WIDTHS[variant][3]
    assert largest_difference(peer, network, 70, torch.float64) <= FLOAT64_TOLERANCE


@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_auto_classes_load_what_convert_writes(gated: bool, num_registers: int, tmp_path: Path) -> None:
    settings = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "image_size": 70}
    settings |= {"use_swiglu_ffn": gated, "patch_size": 14}
    if num_registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=num_registers, **settings)
        peer = transformers.Dinov2WithRegistersModel(config)
    else:
        peer = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    peer.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "model", to="foveal")
    convert(tmp_path / "model", tmp_path / "ours", to="huggingface")
    again, report = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(peer)
    assert not any(report.values())
    for name, tensor in peer.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_backbone_of_a_task_model_is_taken_and_its_classifier_named(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=48, num_attention_heads=3, num_hidden_layers=1, image_size=28, num_labels=5
    )
    peer = transformers.Dinov2ForImageClassification(config)
    peer.save_pretrained(tmp_path / "hf")
    checkpoint = read_checkpoint(tmp_path / "hf")
    assert checkpoint.left_out == {"classifier": 2}
    assert checkpoint.card.lineage["taken_from"] == "dinov2"
    wanted = peer.dinov2.embeddings.position_embeddings
    assert torch.equal(checkpoint.tensors["pos_embed"], wanted)


def test_names_that_transformers_has_in_memory_are_read(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=48, num_attention_heads=3, num_hidden_layers=2, image_size=28, use_swiglu_ffn=True
    )
    peer = transformers.Dinov2Model(config)
    assert "encoder.layer.0.mlp.gate_proj.weight" in peer.state_dict()
    torch.save(peer.state_dict(), tmp_path / "pytorch_model.bin")
    peer.save_pretrained(tmp_path / "hf")
    assert "encoder.layer.0.mlp.weights_in.weight" in _names(tmp_path / "hf" / "model.safetensors")
    one, other = read_checkpoint(tmp_path).tensors, read_checkpoint(tmp_path / "hf").tensors
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_missing_mask_token_is_filled_in_and_said(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=48, num_attention_heads=3, num_hidden_layers=1, image_size=28, use_mask_token=False
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "hf")
    checkpoint = read_checkpoint(tmp_path / "hf")
    assert "mask token: zeros, the file has none" in checkpoint.assumed
    assert not checkpoint.tensors["mask_token"].any()


def test_image_processor_that_convert_writes_prepares_like_ours(tmp_path: Path) -> None:
    peer = peer_model("vits", num_registers=0, num_blocks=1, image_size=28)
    peer.save_pretrained(tmp_path / "hf")
    network, _ = load_checkpoint(tmp_path / "hf")
    card = Card(
        name="x", backbone=network.config, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], crop_size=28, resize_size=40
    )
    save_model(tmp_path / "model", network, card)
    convert(tmp_path / "model", tmp_path / "out", to="huggingface")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)  # 40 x 48: margins are even
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    ours = Preprocess(
        mode="crop", resize_size=40, crop_size=28, patch_size=14, mean=tuple(card.mean), std=tuple(card.std)
    )(pixels)
    torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-5, rtol=0)


def _names(path: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return set(file.keys())
