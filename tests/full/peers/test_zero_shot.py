"""Zero-shot by open_clip's models against open_clip's own transform, tokenizer and network, on tiny random weights."""

import csv
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from foveal.cli.main import main
from foveal.evaluate.zero_shot import vectors_of_open_clip
from foveal.features.extract import load_pair
from foveal.images.imageset import ImageSet

CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
COLOURS = {"deep_blue": (20, 30, 220), "grass_green": (30, 180, 40), "red": (230, 20, 30)}
TEMPLATES = ("a photo of a {}.", "a drawing of a {}, which goes on and on, far beyond what the text tower reads, {}")


@pytest.fixture
def name(tmp_path: Path) -> str:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny-zero-shot.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / "configs")
    return "tiny-zero-shot"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            picture = np.array(colour) + generator.integers(-20, 20, (80, 150 + 9 * number, 3))
            picture[:, :40] = 255  # which a crop leaves out
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / f"photos/{label}/{number}.png")
    return tmp_path / "photos"


def _own_answer(name: str, photos: Path, **options: str) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """Return vectors of the images and of the classes, as open_clip's examples compute them, and the model."""
    clip, _, transform = open_clip.create_model_and_transforms(name, **options)
    tokenizer = open_clip.get_tokenizer(name)
    clip.eval()
    with torch.inference_mode():
        pictures = torch.stack([transform(Image.open(path)) for path in sorted(photos.glob("*/*.png"))])
        images = clip.encode_image(pictures, normalize=True)
        classes = []
        for label in COLOURS:
            texts = tokenizer([template.replace("{}", label.replace("_", " ")) for template in TEMPLATES])
            mean = clip.encode_text(texts, normalize=True).mean(dim=0)
            classes.append(mean / mean.norm())
    return images, torch.stack(classes), clip


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_vectors_are_those_of_open_clip(name: str, photos: Path, mode: str, tmp_path: Path) -> None:
    own, _, clip = _own_answer(name, photos, image_resize_mode=mode)
    save_file(clip.state_dict(), tmp_path / "weights.safetensors")
    model, towers = load_pair(f"open_clip:{name}#{tmp_path / 'weights.safetensors'}")
    towers.squashes = mode == "squash"
    batches = list(vectors_of_open_clip(model, towers, ImageSet.open(photos), batch_size=4))
    assert torch.cat([indices for indices, _ in batches]).tolist() == list(range(9))
    # pixels are resized by another library: a level of 255 here and there
    torch.testing.assert_close(torch.cat([vectors for _, vectors in batches]), own, atol=0.02, rtol=0)


def test_models_of_open_clip_say_whether_they_squash(name: str) -> None:
    assert not load_pair(f"open_clip:{name}#random")[1].squashes


def test_command_line(name: str, photos: Path, tmp_path: Path) -> None:
    images, classes, clip = _own_answer(name, photos)
    save_file(clip.state_dict(), tmp_path / "weights.safetensors")
    right = (images @ classes.T).argmax(dim=1) == torch.arange(3).repeat_interleave(3)
    command = ["evaluate", "zero-shot", "--model", f"open_clip:{name}#{tmp_path / 'weights.safetensors'}"]
    command += [f"--data={photos}", *(f"--template={template}" for template in TEMPLATES)]
    assert main([*command, f"--out={tmp_path / 'results'}"]) == 0
    with (tmp_path / "results" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["metric"] == "top-1"
    assert row["protocol"].startswith("zero-shot, texts ")  # templates of one's own
    assert float(row["value"]) == pytest.approx(100 * float(right.double().mean()))
