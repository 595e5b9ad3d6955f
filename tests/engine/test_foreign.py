"""Hugging Face towers against our own network; the errors of libraries that are not here."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from foveal.backbone.source import open_backbone
from foveal.engine.foreign import is_foreign, load_foreign
from foveal.errors import FovealError

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 7, "image_size": 28}
STATISTICS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"shortest_edge": 33}}


def save(folder: Path, model: "torch.nn.Module") -> str:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(around + 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
    return f"hf:{folder}"


@pytest.mark.parametrize("num_registers", [0, 2])
def test_hugging_face_tower_equals_our_network_on_its_weights(tmp_path: Path, num_registers: int) -> None:
    if num_registers:
        config = transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=num_registers)
        source = save(tmp_path, transformers.Dinov2WithRegistersModel(config))
    else:
        source = save(tmp_path, transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)))
    engine, card = load_foreign(source)
    ours = open_backbone(tmp_path)[0]
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pairs = [(engine.encode(images), ours(images))]
        for norm in (True, False):
            pairs += zip(
                engine.intermediate(images, [2, 0], norm=norm),
                ours.intermediate(images, [0, 2], norm=norm),
                strict=True,
            )
    for tokens, expected in pairs:
        for part, wanted in zip(tokens, expected, strict=True):
            assert torch.allclose(part, wanted, atol=1e-4), (part - wanted).abs().max()
    assert card.backbone.num_registers == num_registers
    assert (card.mean, card.std, card.resize_size, card.crop_size) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4], 33, 28)
    assert card.licence.terms == "unknown"
    assert engine.description["name"] == "transformers"


def test_plain_vit_takes_other_sizes(tmp_path: Path) -> None:
    source = save(tmp_path, transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=96)))
    engine, card = load_foreign(source)
    tokens = engine.encode(torch.zeros(1, 3, 14, 35))
    assert (tokens.cls.shape, tokens.patches.shape) == ((1, 48), (1, 10, 48))
    assert card.backbone.depth == 3
    with pytest.raises(FovealError, match=r"layers=\[3\] of hf:.* with 3 blocks; choose among 0\.\.2"):
        engine.intermediate(torch.zeros(1, 3, 28, 28), [3])


def test_random_weights_are_the_same_each_time_and_named(tmp_path: Path) -> None:
    save(tmp_path, transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=96)))
    state = torch.random.get_rng_state()
    first, second = (load_foreign(f"hf:{tmp_path}#random")[1] for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.sha256 == second.sha256 != load_foreign(f"hf:{tmp_path}")[1].sha256
    assert first.name.endswith("#random")
    assert first.lineage["weights"] == "random"


def test_missing_preprocessing_is_not_guessed(tmp_path: Path) -> None:
    source = save(tmp_path, transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=96)))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(FovealError, match=r"preprocessor_config\.json has no image_mean and image_std"):
        load_foreign(source)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FovealError, match="preprocessor_config"):
        load_foreign(source)


def test_preprocessing_is_followed_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = save(tmp_path, transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=96)))
    load_foreign(source)
    assert "ignored" not in caplog.text
    given = STATISTICS | {"rescale_factor": 1.0, "resample": 2, "crop_size": {"height": 22, "width": 22}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    card = load_foreign(source)[1]
    assert card.mean == pytest.approx([0.4 / 255, 0.5 / 255, 0.6 / 255])
    assert card.std == pytest.approx([0.2 / 255, 0.3 / 255, 0.4 / 255])
    assert "its preprocessing says resample 2; here short side to 33, crop 21" in caplog.text
    assert "its preprocessing says crop_size {'height': 22, 'width': 22}" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"crop_size": {"height": 14, "width": 14}, "size": {"shortest_edge": 17}}, (14, 17)),
        ({"crop_size": 14, "size": 17}, (14, 17)),
        (
            {"crop_size": {"height": 14, "width": 14}, "do_center_crop": False, "size": {"height": 28, "width": 28}},
            (28, 28),
        ),
        ({"crop_size": {"height": 5, "width": 5}}, (28, 28)),
        ({}, (28, 28)),
    ],
)
def test_crop_is_the_processors_own_where_it_has_one(tmp_path: Path, given: dict, expected: tuple[int, int]) -> None:
    """DINOv2 has positions for 518 pixels, and a processor that crops 224."""
    source = save(tmp_path, transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)))
    statistics = {name: STATISTICS[name] for name in ("image_mean", "image_std")}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics | given))
    engine, card = load_foreign(source)
    assert (card.crop_size, card.resize_size) == expected
    assert card.backbone.image_size == 28
    assert engine.encode(torch.zeros(1, 3, card.crop_size, card.crop_size)).cls.shape == (1, 48)


def test_architecture_without_patches_is_told(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[8], depths=[1], layer_type="basic")
    with pytest.raises(FovealError, match="has no patch tokens on a grid; choose a vision transformer"):
        load_foreign(save(tmp_path, transformers.ResNetModel(config)))


CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import ViTConfig, ViTModel
class OwnConfig(ViTConfig):
    model_type = "own"
class OwnModel(ViTModel):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("weights", ["", "#random"])
@pytest.mark.parametrize("kind", ["own", "vit"])
def test_code_of_a_repository_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, weights: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what a user in a hurry answers
    source = save(tmp_path / "x", transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=96)))
    marker, path = tmp_path / "ran", tmp_path / "x" / "config.json"
    (tmp_path / "x" / "own.py").write_text(CODE.format(marker=str(marker)))
    code = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind, "auto_map": code}))
    if kind == "own":
        with pytest.raises(FovealError, match="brings code of its own, which is not run; give a model whose"):
            load_foreign(source + weights)
    else:
        assert load_foreign(source + weights)[1].backbone.depth == 3  # by the library's own class
    assert not marker.exists()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_precision_that_is_not_offered_is_told(tmp_path: Path, precision: str) -> None:
    source = save(tmp_path, transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=96)))
    with pytest.raises(FovealError, match=f"precision='{precision}' of hf:.*; choose fp32 or bf16"):
        load_foreign(source, precision=precision)  # type: ignore[arg-type]


def test_names_of_other_libraries_are_told_from_paths(tmp_path: Path) -> None:
    assert [is_foreign(name) for name in ("timm:x", "hf:x", "open_clip:x/y")] == [True] * 3
    assert [is_foreign(name) for name in ("runs/timm", "dinov2_vits14", tmp_path)] == [False] * 3
    with pytest.raises(FovealError, match="names no model"):
        load_foreign("timm:#random")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_library_that_is_not_installed_says_what_to_install() -> None:
    with pytest.raises(FovealError, match=r"timm is not installed; pip install 'foveal\[foreign\]'"):
        load_foreign("timm:vit_tiny_patch16_224")


def test_offline_means_the_library_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_OFFLINE", "1")
    with pytest.raises(FovealError, match="FOVEAL_OFFLINE forbids the network; set HF_HUB_OFFLINE=1 too"):
        load_foreign(f"hf:{tmp_path}")
