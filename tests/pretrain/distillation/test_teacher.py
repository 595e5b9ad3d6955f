"""The frozen teacher: what it is shown, on which grid its tokens come, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from foveal.backbone.card import Card, read_card, write_card
from foveal.backbone.variants import backbone_config
from foveal.backbone.weights import HEADS, load_heads, load_model
from foveal.errors import RecipeError, WeightsError
from foveal.files import sha256_of
from foveal.pretrain.distillation.teacher import Teacher, TeacherBackbone, open_heads, resize_patches

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _crops(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_resized_patches_by_hand() -> None:
    """A shrinking grid averages, a growing one interpolates; rows are grid_h, columns grid_w."""
    patches = torch.tensor([[[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [6.0, 1.0]]])
    assert resize_patches(patches, grid=(2, 2), to=(2, 2)) is patches
    assert torch.allclose(resize_patches(patches, grid=(2, 2), to=(1, 1)), torch.tensor([[[3.0, 1.0]]]))
    wide = resize_patches(patches, grid=(1, 4), to=(1, 8))
    assert wide[0, :, 0].tolist() == pytest.approx([0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.0])


def test_tokens_are_those_of_the_network_on_crops_normalised_its_way(make_teacher: Any) -> None:
    folder = make_teacher(mean=[0.1, 0.2, 0.3], std=[0.3, 0.2, 0.1])
    crops = _crops()
    shape = (1, 3, 1, 1)
    pixels = crops * torch.tensor(STD).view(shape) + torch.tensor(MEAN).view(shape)
    theirs = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(shape)) / torch.tensor([0.3, 0.2, 0.1]).view(shape)
    with torch.no_grad():
        wanted = load_model(folder)[0](theirs)
    cls, patches = Teacher(str(folder), mean=MEAN, std=STD, device=CPU).tokens(crops, grid=(4, 4))
    assert torch.allclose(cls, wanted.cls, atol=1e-5)
    assert torch.allclose(patches, wanted.patches, atol=1e-5)


def test_another_patch_size_comes_on_the_students_grid(make_teacher: Any) -> None:
    """30 pixels are no multiple of 8: the teacher sees 32 and its 4 x 4 patches become 6 x 6."""
    folder = make_teacher(mean=list(MEAN), std=list(STD))
    teacher = Teacher(str(folder), mean=MEAN, std=STD, device=CPU)
    crops = _crops(30)
    seen = torch.nn.functional.interpolate(crops, size=(32, 32), mode="bicubic", antialias=True)
    whole = teacher.tokens(seen, grid=(4, 4))
    cls, patches = teacher.tokens(crops, grid=(6, 6))
    assert torch.equal(cls, whole[0])
    assert torch.equal(patches, resize_patches(whole[1], grid=(4, 4), to=(6, 6)))
    backbone = TeacherBackbone(teacher, patch_size=5)
    packed = torch.cat([cls[:, None], patches], dim=1).flatten(0, 1)
    rows = torch.tensor([37, 3])
    assert backbone.grid_of(crops) == (6, 6)
    assert torch.equal(backbone.forward_rows([crops], [None], rows), packed[rows])


def test_heads_are_those_of_the_folder_and_shared_where_it_has_one(make_teacher: Any, tmp_path: Path) -> None:
    separate, shared = (open_heads(make_teacher(str(s), shared=s)) for s in (False, True))
    assert shared.patch_head is shared.dino_head
    for name, head in zip(("dino_head", "ibot_head"), separate, strict=True):
        stored = load_heads(tmp_path / "False")
        assert all(torch.equal(value, stored[f"{name}.{key}"]) for key, value in head.state_dict().items())
        assert not any(parameter.requires_grad for parameter in head.parameters())


def _with_heads(folder: Path, heads: dict[str, torch.Tensor]) -> Path:
    save_file(heads, folder / HEADS)
    card = read_card(folder)
    write_card(folder, card.model_copy(update={"sha256": {**card.sha256, HEADS: sha256_of(folder / HEADS)}}))
    return folder


def test_heads_of_another_width_are_refused(make_teacher: Any, tmp_path: Path) -> None:
    folder = make_teacher()
    make_teacher("other", width=66)
    _with_heads(folder, load_file(tmp_path / "other" / HEADS))
    with pytest.raises(WeightsError, match=r"takes tokens of width 66, the backbone of model.json gives"):
        open_heads(folder)


def test_damaged_and_strange_heads_are_refused(make_teacher: Any) -> None:
    folder = make_teacher()
    heads = load_file(folder / HEADS)
    path = folder / HEADS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"ssl_heads.safetensors is damaged"):
        open_heads(folder)
    _with_heads(folder, {f"head.{name}": value for name, value in heads.items()})
    with pytest.raises(WeightsError, match="expected dino_head and ibot_head"):
        open_heads(folder)
    short = {name: value for name, value in heads.items() if name != "dino_head.mlp.2.bias"}
    with pytest.raises(WeightsError, match=r"dino_head does not fit this network: missing mlp.2.bias"):
        open_heads(_with_heads(folder, short))
    with pytest.raises(WeightsError, match=r"has no ssl_heads.safetensors, which only pretraining writes"):
        open_heads(make_teacher("bare", heads=False))


def test_a_teacher_larger_than_memory_is_refused_before_it_is_read(make_teacher: Any) -> None:
    folder = make_teacher()
    huge = backbone_config("vit_nano", width=49152, depth=1000, num_heads=3)
    write_card(folder, Card(name="huge", backbone=huge))
    with pytest.raises(RecipeError, match=r"needs 1\d\d(,\d{3}){4} bytes for its weights and .* are free on cpu"):
        Teacher(str(folder), mean=MEAN, std=STD, device=CPU)


def test_other_channels_are_refused(make_teacher: Any) -> None:
    folder = make_teacher()
    with pytest.raises(RecipeError, match=r"takes 3 channels, backbone.channels=2; choose a teacher with as many"):
        Teacher(str(folder), mean=MEAN[:2], std=STD[:2], device=CPU)
