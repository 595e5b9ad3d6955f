"""Zero-shot against answers that are known, and through the command line with dino.txt's files."""

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.cli.main import main
from foveal.errors import FovealError
from foveal.evaluate.report import read_rows
from foveal.evaluate.zero_shot import class_vectors, read_names, run
from foveal.images.imageset import ImageSet

WORDS = ("blue", "green", "red")


def _encode(texts: list[str]) -> torch.Tensor:
    """A text is the axis of the colour it names, plus a little of its length."""
    rows = [[float(word in text) for word in WORDS] + [0.01 * len(text)] for text in texts]
    return F.normalize(torch.tensor(rows), dim=1)


def test_accuracy_is_the_share_of_images_nearest_to_their_class(colours: Path) -> None:
    images = ImageSet.open(colours / "test")
    axes = torch.eye(4)[:3]
    vectors = torch.cat([axes.repeat_interleave(3, dim=0)])
    vectors[0] = axes[2]  # a blue one that looks red
    batches = iter([(torch.arange(4), vectors[:4]), (torch.arange(4, 9), vectors[4:])])
    (found,) = run(batches, _encode, images)
    assert (found.metric, found.unit) == ("top-1", "%")
    assert found.value == pytest.approx(100 * 8 / 9)
    assert found.low < found.value <= found.high


def test_names_and_templates_change_what_is_read(colours: Path) -> None:
    images = ImageSet.open(colours / "test")
    axes = torch.eye(4)[:3].repeat_interleave(3, dim=0)
    turned = {"blue": "green", "green": "red", "red": "blue"}
    (found,) = run(iter([(torch.arange(9), axes)]), _encode, images, names=turned)
    assert found.value == 0
    with pytest.raises(FovealError, match=r"no name for 2 of 3 classes, first green"):
        run(iter([]), _encode, images, names={"blue": "blue"})
    two = class_vectors(["red"], _encode, templates=["a {}", "a green {}"])
    expected = F.normalize(_encode(["a red"]) + _encode(["a green red"]), dim=1)
    torch.testing.assert_close(two, expected)
    with pytest.raises(FovealError, match=r"template 'a photo' has no \{\}"):
        class_vectors(["red"], _encode, templates=["a {}", "a photo"])


def test_a_list_of_names_in_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("n01\ttench\n\nn02 shark\n")
    with pytest.raises(FovealError, match=r"names.txt, line 2: give a label, a tab"):
        read_names(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("n01\ttench\n")
    assert read_names(tmp_path / "names.txt") == {"n01": "tench"}


def test_command_line(colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    from dinotxt_files import WIDTH, write_dinotxt

    config = backbone_config(
        "vit_nano", width=WIDTH, num_heads=1, depth=1, patch_size=7, image_size=28, num_registers=2
    )
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    save_model(tmp_path / "model", backbone, Card(name="tiny", backbone=config, crop_size=28, resize_size=32))
    files = write_dinotxt(tmp_path)
    options = [f"--{name.replace('_', '-')}={path}" for name, path in files.items()]
    command = ["evaluate", "zero-shot", f"--model={tmp_path / 'model'}", f"--data={colours / 'test'}", *options]
    assert main([*command, f"--out={tmp_path / 'results'}"]) == 0
    assert "top-1" in capsys.readouterr().out
    with (tmp_path / "results" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["protocol"], row["metric"], row["data"]) == ("zero-shot", "top-1", "test")
    assert main([*command, "--template", "a {}", f"--out={tmp_path / 'results'}"]) == 0
    assert [row.protocol[:17] for row in read_rows(tmp_path / "results")] == ["zero-shot", "zero-shot, texts "]
    right = float(row["value"]) * 9 / 100
    assert right == pytest.approx(round(right), abs=1e-6)
    assert main([*command, "--template=photo"]) == 2
    assert "has no {}" in capsys.readouterr().err


def test_files_of_the_text_tower_are_asked_for_before_anything_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "head.pth").touch()
    command = ["evaluate", "zero-shot", "--data", str(tmp_path / "none")]
    assert main([*command, "--model", "dinov2_vitl14_reg", "--vision-head", str(tmp_path / "head.pth")]) == 2
    assert "no text tower; give dino.txt's files (--text-encoder, --vocabulary missing)" in capsys.readouterr().err
    assert main([*command, "--model", "open_clip:ViT-B-32/openai", "--vision-head", str(tmp_path / "head.pth")]) == 2
    assert "--vision-head has no effect: open_clip:ViT-B-32/openai has a text tower" in capsys.readouterr().err
