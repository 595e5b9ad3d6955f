"""timm's and open_clip's towers behind our call give what the libraries give themselves."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

import foveal
from foveal.engine.foreign import load_foreign
from foveal.errors import FovealError

VIT = "timm:vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("name", "registers", "size"), [("vit_tiny_patch16_224", 0, 224), ("vit_small_patch14_reg4_dinov2", 4, 56)]
)
def test_timm_tokens_are_those_of_its_own_forward(name: str, registers: int, size: int) -> None:
    engine, card = load_foreign(f"timm:{name}#random")
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = engine.tower.module.forward_features(images)
    tokens = engine.encode(images)
    assert torch.equal(torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1), expected)
    assert card.backbone.num_registers == tokens.registers.shape[1] == registers
    second, last = engine.intermediate(images, [11, 3])
    assert torch.equal(last.cls, tokens.cls)
    assert not torch.equal(second.patches, last.patches)
    raw = engine.intermediate(images, [11], norm=False)[0]
    assert torch.allclose(engine.tower.module.norm(raw.patches), tokens.patches, atol=1e-5)


def test_timm_card_has_its_preprocessing() -> None:
    card = load_foreign("timm:vit_small_patch14_dinov2#random")[1]
    data = timm.data.resolve_model_data_config(timm.create_model("vit_small_patch14_dinov2"))
    assert (tuple(card.mean), tuple(card.std)) == (data["mean"], data["std"])
    assert (card.crop_size, card.backbone.patch_size, card.backbone.width) == (518, 14, 384)
    assert card.licence.terms == "own"


def test_timm_weights_come_from_a_file_and_decide_the_hash(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    engine, card = load_foreign(f"{VIT}#{tmp_path / 'weights.safetensors'}")
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(engine.encode(images).cls, model.eval().forward_features(images)[:, 0])
    first, second = (load_foreign(f"{VIT}#random")[1] for _ in range(2))
    assert first.sha256 == second.sha256 != card.sha256
    assert (first.licence.terms, card.licence.terms) == ("own", "unknown")  # a file is not what timm gives out


class Program:
    def __reduce__(self) -> tuple:
        return (print, ("it ran",))


@pytest.mark.parametrize("name", [VIT, "open_clip:ViT-S-32"])
def test_file_of_weights_is_opened_by_us(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {"x": Program()}}, path)
    with pytest.raises(FovealError, match=r"refused unread: its pickle asks for __builtin__\.print"):
        load_foreign(f"{name}#{path}")
    with pytest.raises(FovealError, match=r"has no weights '.*x\.pt' of ViT-S-32"):
        load_foreign(f"open_clip:ViT-S-32/{path}")
    whole = timm.create_model(VIT[5:], num_classes=0) if name == VIT else open_clip.create_model("ViT-S-32")
    state = {f"module.{key}": tensor for key, tensor in whole.state_dict().items()}
    torch.save({"state_dict": state, "optimizer": {"step": torch.zeros(1)}}, path)
    found, tower = load_foreign(f"{name}#{path}")[0].tower.module, whole if name == VIT else whole.visual
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in tower.state_dict().items())
    del state["module." + next(iter(reversed(whole.state_dict())))]
    torch.save(state | {"module.more": torch.zeros(1)}, path)
    with pytest.raises(FovealError, match=r"does not fit this network: missing .*, unexpected more$"):
        load_foreign(f"{name}#{path}")


def test_extract_works_with_other_sizes() -> None:
    model = foveal.load(f"{VIT}#random")
    pictures = [np.full((50, 70, 3), shade, dtype=np.uint8) for shade in (10, 200)]
    features = model.extract(pictures, size=64)
    assert features.cls.shape == (2, 192)
    assert features.patches.shape == (2, 4, 4, 192)


def test_tower_without_class_token_gives_the_mean_patch() -> None:
    tokens = load_foreign("timm:vit_base_patch16_siglip_224#random")[0].encode(torch.randn(1, 3, 64, 64))
    assert tokens.registers.shape == (1, 0, 768)
    assert torch.allclose(tokens.cls, tokens.patches.mean(dim=1))


def test_open_clip_class_token_projects_to_its_embedding() -> None:
    engine, card = load_foreign("open_clip:ViT-S-32#random")
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = engine.tower.module(images)
        assert torch.allclose(engine.encode(images).cls @ engine.tower.module.proj, expected, atol=1e-5)
    assert engine.encode(images).patches.shape == (2, 49, card.backbone.width)
    assert card.mean == list(open_clip.OPENAI_DATASET_MEAN)
    assert engine.description["name"] == "open_clip_torch"
    with pytest.raises(FovealError, match="takes 224 x 224 pixels, not 64 x 64"):
        engine.encode(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:vit_tiny_patch16", r"has no model 'vit_tiny_patch16'; near: vit_tiny_patch16_224"),
        (f"{VIT}#no/file.safetensors", r"no/file\.safetensors does not exist"),
        (VIT, r"cannot be loaded: .*; give its weights as timm:vit_tiny_patch16_224#FILE, or #random"),
        ("open_clip:ViT-B-32", r"which weights\? give open_clip:ViT-B-32/PRETRAINED \(one of openai, "),
        ("open_clip:ViT-B-32/nope", "open_clip has no weights 'nope' of ViT-B-32; choose openai, "),
        ("open_clip:ViT-B-32/openai#random", "names weights twice; leave out /openai or #random"),
        ("open_clip:nope", "has no model 'nope'"),
        ("open_clip:RN50#random", "has no patch tokens on a grid; choose a vision transformer"),
    ],
)
def test_what_cannot_be_loaded_is_told(source: str, message: str) -> None:
    with pytest.raises(FovealError, match=message):
        load_foreign(source)


def test_torchvision_that_does_not_fit_torch_is_named_with_the_pair() -> None:
    """Without the declarations of conftest.py, in a process of its own."""
    code = "from foveal.engine.foreign import load_foreign; load_foreign('timm:vit_tiny_patch16_224#random')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("torchvision fits torch here")
    last = done.stderr.strip().splitlines()[-1]
    assert f"torch {torch.__version__} and torchvision 0.28.0 do not fit each other" in last
    assert "pip install torch==2.13.0 'torchvision==0.28.*'" in last
