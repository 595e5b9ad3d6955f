"""`foveal export tower`: the folder opens with AutoModel and holds the tower's tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import foveal
from foveal.cli.main import main
from foveal.export.card import read_export

transformers = pytest.importorskip("transformers")

Save = Callable[..., Path]


def _export(*options: object) -> int:
    return main(["export", "tower", *map(str, options)])


def test_folder_opens_and_gives_the_tokens_of_the_tower(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    model, out = save_tiny(num_registers=2), tmp_path / "out"
    assert _export(model, "--out", out, "--images", few_images, "--image-size", 21) == 0
    card = read_export(out)
    assert (card.format, card.refused, card.preprocessing.crop_size) == ("tower", None, 21)
    assert card.verdict is not None
    assert card.verdict["patches"]["min"] > 1 - 1e-5
    again = transformers.AutoModel.from_pretrained(out).eval()
    images = torch.randn(2, 3, 21, 21, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = again(images).hidden_states[-2][:, 1:]
    assert found.shape == (2, 9, 48)
    torch.testing.assert_close(found, foveal.VisionTower(model)(images), atol=1e-5, rtol=0)
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    assert dict(processor.crop_size)["height"] == 21


def test_terms_of_both_towers_have_to_be_accepted(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(card={"licence": "CC-BY-NC-4.0"})
    options = (model, "--out", tmp_path / "out", "--images", few_images)
    assert _export(*options) == 2
    assert "CC-BY-NC-4.0" in capsys.readouterr().err
    assert _export(*options, "--clip", tmp_path / "none", "--accept-licence", "CC-BY-NC-4.0") == 2
    assert "CC-BY-NC-4.0 AND unknown" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    assert _export(*options, "--accept-licence", "CC-BY-NC-4.0") == 2
    assert "out exists" in capsys.readouterr().err
