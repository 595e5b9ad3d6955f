"""`foveal.VisionTower` and `foveal export tower`: LLaVA of transformers sees patch tokens and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal.backbone.weights import load_model
from foveal.cli.main import main
from foveal.errors import FovealError
from foveal.export.card import read_export

transformers = pytest.importorskip("transformers")
pytest.importorskip("foveal.export.tower_transformers")  # tells transformers of the tower

Save = Callable[..., Path]
IMAGE, GRID = 35, 5  # the pixels and patches of a side of the tiny backbone
IMAGE_TOKEN, VOCABULARY = 9, 11


def export_tower(*options: object) -> int:
    return main(["export", "tower", *map(str, options)])


def clip_folder(folder: Path, kind: str = "clip") -> Path:
    """A tiny random CLIP or SigLIP image model with its processor: 3 x 3 patches."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    name = {"clip": "CLIPVision", "siglip": "SiglipVision"}[kind]
    config = getattr(transformers, f"{name}Config")(image_size=24, patch_size=8, **sizes)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.3, 0.2, 0.1]).save_pretrained(folder)
    return folder


def llava(folder: Path) -> Any:
    """A tiny random LLaVA on a tower."""
    torch.manual_seed(0)
    text = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=transformers.AutoConfig.from_pretrained(folder),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy="full",
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.vision_tower = transformers.AutoModel.from_pretrained(folder)
    return model.requires_grad_(False)


@pytest.mark.parametrize("num_registers", [0, 3])
def test_tokens_are_the_patches_of_the_last_block_but_one(save_tiny: Save, tmp_path: Path, num_registers: int) -> None:
    model = save_tiny(num_registers=num_registers, depth=3)
    backbone, _ = load_model(model)
    images = torch.randn(2, 3, 21, 35, generator=torch.Generator().manual_seed(0))
    hidden: list[torch.Tensor] = []
    backbone.blocks[1].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    backbone(images)
    tower = foveal.VisionTower.load(model)
    found = tower(images)
    assert found.shape == (2, tower.num_patches(21, 35), tower.hidden_size) == (2, 15, backbone.config.width)
    tokens = hidden[0].reshape(2, 1 + num_registers + 15, -1)
    torch.testing.assert_close(found, tokens[:, 1 + num_registers :], atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not found.requires_grad
    tower.requires_grad_(True)
    tower(images).sum().backward()
    assert tower.backbone.pos_embed.grad is not None
    assert tower.backbone.blocks[2].attn.qkv.weight.grad is None  # the last block is not read


@pytest.mark.parametrize("num_registers", [0, 3])
def test_llava_learns_to_read_a_tower_and_gets_exactly_its_patches(
    save_tiny: Save, few_images: Path, tmp_path: Path, num_registers: int
) -> None:
    source = save_tiny(num_registers=num_registers, card={"licence": "MIT"})
    assert export_tower(source, "--out", tmp_path / "tower", "--images", few_images) == 0
    card = read_export(tmp_path / "tower")
    assert (card.format, card.licence.name, card.refused) == ("tower", "MIT", None)
    model = llava(tmp_path / "tower")
    seen: list[torch.Tensor] = []
    model.model.multi_modal_projector.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    inner: list[torch.Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, inputs, options: inner.append(options["inputs_embeds"]), with_kwargs=True
    )
    images = torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * GRID**2, 2, 3], [1, *[IMAGE_TOKEN] * GRID**2, 4, 5]])
    labels = torch.where(ids == IMAGE_TOKEN, -100, ids)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    optimizer = torch.optim.Adam(projector.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        loss = model(input_ids=ids, pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    exact = foveal.VisionTower.load(source)(images)
    assert exact.shape == (2, GRID**2, card.backbone.width)
    torch.testing.assert_close(seen[0], exact, atol=1e-5, rtol=0)
    with torch.no_grad():
        model(input_ids=ids, pixel_values=images)
        reached = inner[-1][ids == IMAGE_TOKEN]  # what the language model sees in their places
        torch.testing.assert_close(reached, projector(exact).flatten(0, 1), atol=1e-5, rtol=0)
    assert len(reached) == 2 * GRID**2
    with pytest.raises(ValueError, match="do not match"):
        model(input_ids=ids[:, :-4], pixel_values=images)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_second_tower_stands_beside_on_the_same_grid(
    save_tiny: Save, few_images: Path, tmp_path: Path, kind: str
) -> None:
    model, other = save_tiny(), clip_folder(tmp_path / kind, kind)
    tower = foveal.VisionTower.load(model, other=other)
    images = torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))
    found = tower(images)
    width = load_model(model)[1].backbone.width
    assert found.shape == (2, GRID**2, width + 8) == (2, GRID**2, tower.hidden_size)
    torch.testing.assert_close(found[..., :width], foveal.VisionTower.load(model)(images))
    # On its own grid nothing is resampled: the tokens are those of transformers.
    rgb = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    assert tower.other is not None
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.3, 0.2, 0.1]))
    states = tower.other.network(pixel_values=(rgb - mean) / std, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(tower.other(rgb, (3, 3)), states[:, -9:], atol=1e-5, rtol=0)
    # The folder holds both.
    options = ["--images", few_images, "--beside", other, "--beside-licence", "MIT", "--accept-licence", "MIT"]
    assert export_tower(model, "--out", tmp_path / "both", *options) == 0
    opened = transformers.AutoModel.from_pretrained(tmp_path / "both")
    torch.testing.assert_close(opened(images).last_hidden_state, found, atol=1e-5, rtol=0)


def test_what_makes_no_tower_is_refused(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny()
    with pytest.raises(FovealError, match=r"layer=-3 .* with 2 blocks; choose -1 \(the last\) to -2"):
        foveal.VisionTower.load(model, layer=-3)
    with pytest.raises(FovealError, match=r"holds no config\.json"):
        foveal.VisionTower.load(model, other=tmp_path)
    five = save_tiny("five", channels=5)
    with pytest.raises(FovealError, match="sees RGB, and this backbone 5 channels"):
        foveal.VisionTower.load(five, other=clip_folder(tmp_path / "clip"))
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(FovealError, match="is a vit; a second tower is one of clip_vision_model"):
        foveal.VisionTower.load(model, other=tmp_path / "vit")
    clip_folder(tmp_path / "used")
    assert export_tower(model, "--out", tmp_path / "used", "--images", few_images) == 2
    assert "used exists" in capsys.readouterr().err
    options = ["--out", tmp_path / "out", "--images", few_images, "--beside", tmp_path / "clip"]
    assert export_tower(model, *options) == 2
    assert "--accept-licence" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
