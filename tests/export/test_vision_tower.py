"""The vision tower: tokens as transformers computes them, and a tiny LLaVA that reads exactly those."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import foveal
from foveal.backbone.convert import convert
from foveal.errors import FovealError

transformers = pytest.importorskip("transformers")

Save = Callable[..., Path]


def _pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _save_clip(folder: Path, kind: str, image_size: int = 35, patch_size: int = 7) -> Path:
    settings = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    settings |= {"image_size": image_size, "patch_size": patch_size}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}VisionConfig")(**settings)
    getattr(transformers, f"{kind}VisionModel")(config).save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("num_registers", [0, 2])
def test_tokens_are_the_penultimate_patches_of_transformers(
    save_tiny: Save, tmp_path: Path, num_registers: int
) -> None:
    model = save_tiny(num_registers=num_registers, depth=3)
    tower = foveal.VisionTower(model)
    assert (tower.hidden_size, tower.image_size, tower.num_patches) == (48, 35, 25)
    assert not any(one.requires_grad for one in tower.parameters())
    convert(model, tmp_path / "hf", to="huggingface")
    peer = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    images = _pixels(2, 3, 35, 35)
    with torch.no_grad():
        wanted = peer(images, output_hidden_states=True).hidden_states[-2][:, 1 + num_registers :]
    torch.testing.assert_close(tower(images), wanted, atol=2e-5, rtol=0)
    assert tower(_pixels(2, 3, 14, 63)).shape == (2, 18, 48)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_clip_stands_beside_along_the_width(save_tiny: Save, tmp_path: Path, kind: str) -> None:
    model, clip = save_tiny(num_registers=2), _save_clip(tmp_path / "clip", kind)
    tower = foveal.VisionTower(model, clip=clip)
    images = _pixels(2, 3, 35, 35)
    found, card = tower(images), tower.card
    assert found.shape == (2, 25, 72)
    torch.testing.assert_close(found[..., :48], foveal.VisionTower(model)(images), atol=0, rtol=0)
    mean, std = (torch.tensor(one)[:, None, None] for one in (card.mean, card.std))
    peer = getattr(transformers, f"{kind}VisionModel").from_pretrained(clip).eval()
    own = ((images * std + mean) - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[
        :, None, None
    ]
    with torch.no_grad():
        wanted = peer(pixel_values=own, output_hidden_states=True).hidden_states[-2][:, -25:]
    torch.testing.assert_close(found[..., 48:], wanted, atol=2e-5, rtol=0)


def test_coarser_grid_of_clip_is_resized_to_ours(save_tiny: Save, tmp_path: Path) -> None:
    clip = _save_clip(tmp_path / "clip", "CLIP", image_size=70, patch_size=14)
    tower = foveal.VisionTower(save_tiny(), clip=clip)
    assert (tower.image_size, tower.num_patches) == (70, 100)
    assert tower(_pixels(1, 3, 70, 70)).shape == (1, 100, 72)


def test_gradients_flow_where_weights_are_set_free(save_tiny: Save) -> None:
    tower = foveal.VisionTower(save_tiny())
    assert not tower(_pixels(1, 3, 35, 35)).requires_grad
    first = tower.towers.backbone.blocks[0]
    first.requires_grad_(True)
    tower(_pixels(1, 3, 35, 35)).square().sum().backward()
    assert all(one.grad is not None and bool(one.grad.abs().sum() > 0) for one in first.parameters())


def test_what_is_no_tower_is_refused(save_tiny: Save, tmp_path: Path) -> None:
    model, clip = save_tiny(), _save_clip(tmp_path / "clip", "CLIP")
    with pytest.raises(FovealError, match="takes 35 x 35 pixels, not 70; give image_size=35"):
        foveal.VisionTower(model, clip=clip, image_size=70)
    with pytest.raises(FovealError, match="36 is not a multiple of the patch size 7"):
        foveal.VisionTower(model, image_size=36)
    with pytest.raises(FovealError, match="no penultimate one"):
        foveal.VisionTower(save_tiny("flat", depth=1))
    with pytest.raises(FovealError, match="backbone of another library"):
        foveal.VisionTower("timm:vit_small_patch14_dinov2")
    convert(model, tmp_path / "hf", to="huggingface")
    with pytest.raises(FovealError, match="is a dinov2; give a CLIP or SigLIP"):
        foveal.VisionTower(model, clip=tmp_path / "hf")


@pytest.mark.parametrize(("num_registers", "with_clip"), [(0, False), (2, False), (2, True)])
def test_llava_reads_exactly_the_tokens_of_the_tower(
    save_tiny: Save, tmp_path: Path, num_registers: int, with_clip: bool
) -> None:
    from foveal.export.tower import tower_model

    clip = _save_clip(tmp_path / "clip", "CLIP") if with_clip else None
    tower = foveal.VisionTower(save_tiny(num_registers=num_registers), clip=clip)
    tower_model(tower).save_pretrained(tmp_path / "tower")
    vision, report = transformers.AutoModel.from_pretrained(tmp_path / "tower", output_loading_info=True)
    assert not any(report.values())
    text = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    llava = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision.config, text_config=text, image_token_index=39)
    )
    llava.model.vision_tower = vision
    llava.requires_grad_(False)
    projector = llava.model.multi_modal_projector.requires_grad_(True)
    seen: list[Tensor] = []
    projector.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0].detach(), output.detach()]))
    joined: list[Tensor] = []
    llava.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: joined.append(kwargs["inputs_embeds"].detach()), with_kwargs=True
    )
    losses = []
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2)
    images = _pixels(2, 3, 21, 35)  # neither square nor of the native size
    ids = torch.tensor([[1, *[39] * 15, 5, 6], [1, *[39] * 15, 8, 9]])
    labels = ids.masked_fill(torch.arange(18) < 16, -100)
    for _ in range(20):
        loss = llava(input_ids=ids, pixel_values=images, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]  # the language model is random and frozen: it can be steered a little only
    assert seen[0].shape == (2, 15, tower.hidden_size)
    torch.testing.assert_close(seen[0], tower(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(joined[0][:, 1:16], seen[1], atol=0, rtol=0)
    assert joined[0].shape[1] == 18
