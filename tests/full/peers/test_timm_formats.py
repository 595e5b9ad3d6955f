"""Weights of timm through the door and back, where timm is installed: equal to the bit, and the same tokens.

timm imports torchvision, whose compiled part may not fit; then it imports only with its operators declared.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from foveal.backbone.convert import convert
from foveal.backbone.formats import load_checkpoint, read_checkpoint

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not in this environment"),
]

NAMES = ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2")


@pytest.fixture(scope="module")
def timm_module() -> object:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm


def peer_model(timm_module: object, name: str, **changes: object) -> nn.Module:
    depth = 2 if "giant" in name else 12
    peer = timm_module.create_model(name, pretrained=False, **{"img_size": 70, "depth": depth, **changes}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return peer


@pytest.mark.parametrize("container", ["safetensors", "pth", "folder"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_of_timm_give_the_same_tokens(timm_module: object, name: str, container: str, tmp_path: Path) -> None:
    peer = peer_model(timm_module, name)
    if container == "folder":
        timm_module.models.save_for_hf(peer, tmp_path / "x", safe_serialization=True)
        path = tmp_path / "x"
    else:
        path = tmp_path / f"x.{container}"
        (save_file if container == "safetensors" else torch.save)(peer.state_dict(), path)
    network, card = load_checkpoint(path)
    assert card.lineage["format"] == "timm"
    assert card.backbone.num_registers == (4 if "reg4" in name else 0)
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    tokens = network(images)
    found = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
    torch.testing.assert_close(found, peer.forward_features(images), atol=1e-4 if "giant" in name else 2e-5, rtol=0)
    found = network.double()(images.double()).cls
    torch.testing.assert_close(found, peer.double().forward_features(images.double())[:, 0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_timm_to_foveal_to_timm_is_equal_to_the_bit(timm_module: object, name: str, tmp_path: Path) -> None:
    peer = peer_model(timm_module, name, depth=2)
    save_file(peer.state_dict(), tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "model", to="foveal")
    convert(tmp_path / "model", tmp_path / "back", to="timm")
    one, other = load_file(tmp_path / "x.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("registers", "name"), [(0, NAMES[0]), (4, NAMES[2]), (3, NAMES[0])])
@torch.no_grad()
def test_timm_opens_the_folder_that_convert_writes(
    timm_module: object, registers: int, name: str, tmp_path: Path
) -> None:
    from foveal.backbone.variants import backbone_config
    from foveal.backbone.vit import VisionTransformer
    from foveal.backbone.weights import Card, save_model

    variant = "vitg" if "giant" in name else "vits"
    config = backbone_config(variant, depth=2, num_registers=registers, image_size=70)
    network = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0)).eval()
    for parameter in network.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    save_model(tmp_path / "model", network, Card(name="x", backbone=config))
    convert(tmp_path / "model", tmp_path / "timm", to="timm")
    peer = timm_module.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(images).cls, peer.forward_features(images)[:, 0], atol=1e-4, rtol=0)
    data = timm_module.data.resolve_model_data_config(peer)
    assert tuple(data["mean"]) == (0.485, 0.456, 0.406)
    assert read_checkpoint(tmp_path / "timm").card.backbone == config
