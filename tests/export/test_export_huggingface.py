"""`foveal export huggingface`: transformers loads the folder and computes the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from foveal.backbone.formats import load_checkpoint
from foveal.backbone.weights import load_model
from foveal.cli.main import main
from foveal.export.card import read_export
from foveal.features.preprocessing import preprocessing_of

transformers = pytest.importorskip("transformers")

Save = Callable[..., Path]


def _export(*options: object) -> int:
    return main(["export", "huggingface", *map(str, options)])


@pytest.mark.parametrize(("num_registers", "ffn"), [(0, "mlp"), (2, "swiglu")])
def test_auto_model_gives_the_tokens_of_the_model(
    save_tiny: Save, few_images: Path, tmp_path: Path, num_registers: int, ffn: str
) -> None:
    model = save_tiny(num_registers=num_registers, ffn=ffn, card={"licence": "MIT"})
    out = tmp_path / "out"
    assert _export(model, "--out", out, "--images", few_images) == 0
    names = ["config.json", "export.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    card = read_export(out)
    assert (card.format, card.licence.name, card.refused, card.notes) == ("huggingface", "MIT", None, [])
    assert card.verdict is not None
    assert card.verdict["cls"]["min"] > 1 - 1e-5
    network, report = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    backbone, _ = load_model(model)
    images = torch.randn(3, 3, 35, 35, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, exact = network.eval()(images).last_hidden_state, backbone(images)
    wanted = torch.cat([exact.cls[:, None], exact.registers, exact.patches], dim=1)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def test_image_processor_prepares_a_photograph_as_we_do(
    save_tiny: Save, few_images: Path, real_images: Path, tmp_path: Path
) -> None:
    model = save_tiny()
    assert _export(model, "--out", tmp_path / "out", "--images", few_images) == 0
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    prepare = preprocessing_of(load_model(model)[1])
    photographs = sorted(path for path in real_images.rglob("*") if path.suffix == ".jpg")[:3]
    assert photographs
    for path in photographs:
        picture = Image.open(path).convert("RGB")
        found = processor(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(found, torch.from_numpy(prepare(picture)), atol=1e-5, rtol=0)


def test_size_of_pictures_that_is_not_the_native_one_is_noted(
    save_tiny: Save, few_images: Path, tmp_path: Path
) -> None:
    model = save_tiny(card={"crop_size": 21, "resize_size": 24})
    assert _export(model, "--out", tmp_path / "out", "--images", few_images) == 0
    card = read_export(tmp_path / "out")
    assert card.verdict is not None
    assert card.verdict["shapes"] == [[35, 35]]
    (note,) = card.notes
    assert note.startswith("transformers resizes positions in its own way: at 21 pixels")


def test_folder_is_read_again_with_its_terms(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    model = save_tiny(card={"licence": "CC-BY-NC-4.0"})
    options = (model, "--out", tmp_path / "out", "--images", few_images)
    assert _export(*options) == 2
    assert not (tmp_path / "out").exists()
    assert _export(*options, "--accept-licence", "CC-BY-NC-4.0") == 0
    network, card = load_checkpoint(tmp_path / "out")
    assert (card.licence.name, card.licence.accepted) == ("CC-BY-NC-4.0", ())
    for name, tensor in load_model(model)[0].state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_folder_that_does_not_agree_is_kept_aside(
    save_tiny: Save,
    few_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from foveal.backbone import huggingface

    exact = huggingface.to_huggingface

    def swapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = exact(tensors)
        query, key = (f"encoder.layer.1.attention.attention.{one}.weight" for one in ("query", "value"))
        return found | {query: found[key], key: found[query]}

    monkeypatch.setattr(huggingface, "to_huggingface", swapped)
    assert _export(save_tiny(), "--out", tmp_path / "out", "--images", few_images) == 2
    assert "out.refused" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    refused = json.loads((tmp_path / "out.refused" / "export.json").read_text())
    assert "the limit is 0.999" in refused["refused"]
    assert refused["verdict"]["worst_layer"]["name"] == "blocks.1"


def test_without_transformers_the_folder_says_that_it_was_not_compared(
    save_tiny: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert _export(save_tiny(), "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "transformers is not installed" in told
    assert "foveal export verify DIR MODEL" in told
    assert read_export(tmp_path / "out").verdict is None


def test_what_cannot_be_exported_is_refused(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    bad = save_tiny("bad")
    network, _ = load_model(bad)
    with torch.no_grad():
        network.norm.weight[0] = torch.nan
    save_file(network.state_dict(), bad / "model.safetensors")
    for options, text in (
        ((model, "--out", tmp_path / "used"), "used exists"),
        (("timm:vit_small_patch14_dinov2", "--out", tmp_path / "new"), "is a backbone of another library"),
        ((model, "--out", tmp_path / "new", "--limit", 1.5), "limit 1.5 is no cosine"),
        ((bad, "--out", tmp_path / "new"), "model.safetensors"),
    ):
        assert _export(*options, "--images", few_images) == 2
        assert text in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "used" / "file").read_text() == "mine"
