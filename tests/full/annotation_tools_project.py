"""A small project with labels and masks, a model, and what tools read of it, for tests against the real packages."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from foveal.annotate.formats import write_annotations
from foveal.annotate.project import Project
from foveal.annotate.records import Edit
from foveal.annotate.set_features import open_features
from foveal.annotate.types import Annotation, Box, Mask
from foveal.backbone.card import Card
from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.features.extract import load
from foveal.images.imageset import ImageSet

COLOURS = {"red": (230, 20, 30), "blue": (20, 30, 220)}
NUM_EACH, NUM_LABELLED, SIDE = 20, 18, 56


def make_project(folder: Path) -> dict[str, np.ndarray]:
    """Write FOLDER/{model,pictures,project} and the exports of the project; return the mask of each picture.

    A picture shows a red or blue square on dark noise. All but the last two of each colour have label and mask.
    """
    config = backbone_config("vit_nano", depth=2, num_registers=2, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    card = Card(name="tiny", backbone=config, crop_size=28, resize_size=32, licence=OWN)
    save_model(folder / "model", backbone, card)
    masks = dict(_picture(folder / "pictures", name, number) for name in COLOURS for number in range(NUM_EACH))
    model = load(folder / "model", engine="torch")
    images = ImageSet.open(folder / "pictures")
    with Project.create(folder / "project", images, model=model, held_out_share=0.99, key=b"k") as project:
        for name in COLOURS:
            project.add_class(name)
            for number in range(NUM_LABELLED):
                uri = f"{name}/{number:02d}.png"
                project.write([Edit(Annotation(uri, name)), Edit(Annotation(uri, name, Mask.of(masks[uri])))])
        project.write([Edit(Annotation("red/00.png", "blue", None, Box(1.5, 2, 10, 7.25)))])
        open_features(project, model)
        found = project.to_set()
        for format in ("coco", "cvat", "label-studio", "fiftyone"):
            write_annotations(found, folder / "exports" / format, format=format, images=images)
    return masks


def _picture(folder: Path, name: str, number: int) -> tuple[str, np.ndarray]:
    generator = np.random.default_rng([number, list(COLOURS).index(name)])
    pixels = generator.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), bool)
    top, left = generator.integers(0, 5, 2) * 7
    mask[top : top + 21, left : left + 21] = True
    pixels[mask] = np.clip(np.array(COLOURS[name]) + generator.integers(-15, 16, (441, 3)), 0, 255)
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return f"{name}/{number:02d}.png", mask
