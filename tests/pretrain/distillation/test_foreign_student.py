"""Students of other libraries, with one of Hugging Face: as any other in the loop, and in what it leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import foveal
from foveal.backbone.card import read_card
from foveal.backbone.weights import load_model
from foveal.errors import FovealError, RecipeError, WeightsError
from foveal.pretrain.checkpoints.reader import list_checkpoints, open_checkpoint
from foveal.pretrain.distillation.foreign import ForeignStudent
from foveal.pretrain.distillation.learner import Distillation
from foveal.pretrain.distillation.teacher import Teacher
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import load_recipe
from foveal.pretrain.run import CHECKPOINTS

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 16, "image_size": 32}


@pytest.fixture
def architecture(tmp_path: Path) -> str:
    """A Dinov2 of Hugging Face with stochastic depth, as a folder without weights."""
    transformers.Dinov2Config(**SIZES, drop_path_rate=0.4).save_pretrained(tmp_path / "arch")
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"shortest_edge": 32}}
    (tmp_path / "arch" / "preprocessor_config.json").write_text(json.dumps(statistics))
    return f"hf:{tmp_path / 'arch'}#random"


@pytest.fixture
def recipe(tiny_yaml: Path, photos: Path, make_teacher: Any, architecture: str, tmp_path: Path) -> Any:
    teacher = make_teacher()

    def make(*overrides: str, out: str = "run", variant: str = architecture) -> Any:
        values = yaml.safe_load(tiny_yaml.read_text())
        values |= {"backbone": {"variant": variant}, "distill": {"teacher": str(teacher)}}
        (tmp_path / "foreign.yaml").write_text(yaml.safe_dump(values))
        places = [f"images={photos}", f"out={tmp_path / out}"]
        return load_recipe(str(tmp_path / "foreign.yaml"), [*places, *overrides])

    return make


def test_the_library_says_the_sizes(recipe: Any, architecture: str) -> None:
    backbone = recipe().backbone
    assert (backbone.width, backbone.depth, backbone.patch_size, backbone.image_size) == (36, 2, 16, 32)
    assert backbone.variant == architecture


def test_an_interrupted_run_equals_the_whole_and_its_model_loads(recipe: Any, tmp_path: Path) -> None:
    """The student's own stochastic depth is drawn from the step, so that it too is the same after an interruption."""
    further = "distill.students={ours: {variant: vit_nano, depth: 1, patch_size: 8, image_size: 32}}"
    pretrain(recipe(further, out="whole"))
    for _ in range(2):
        torch.rand(3)  # another state of the global generator
        pretrain(recipe(further, out="parts"), stop_after=3)
    bits = []
    for out in ("whole", "parts"):
        newest = list_checkpoints(tmp_path / out / CHECKPOINTS)[-1]
        files = [*newest.glob("*.safetensors"), *(tmp_path / out).glob("**/model.safetensors")]
        bits.append({f"{path.parent.name}/{path.name}": path.read_bytes() for path in files})
    assert bits[0] == bits[1]
    model = foveal.load(tmp_path / "whole/model")
    card = read_card(tmp_path / "whole/model")
    learner = Distillation(recipe(further), device=CPU)
    checkpoint = open_checkpoint(list_checkpoints(tmp_path / "whole" / CHECKPOINTS)[-1])
    learner.averages["model"].load_state_dict(checkpoint.read("average"))
    crops = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = learner.result.backbone(crops)
    assert torch.allclose(model.engine.encode(crops).cls, wanted.cls, atol=1e-5)
    assert card.name.startswith("hf:")
    assert load_model(tmp_path / "whole/students/ours")[1].backbone.width == 48
    taught = Teacher(str(tmp_path / "whole/model"), mean=card.mean, std=card.std, device=CPU)
    assert torch.equal(taught.tokens(crops, grid=(2, 2))[0], model.engine.encode(crops).cls)
    with pytest.raises(WeightsError, match=r"a network of another library; only foveal\.load opens it"):
        load_model(tmp_path / "whole/model")


def test_packed_rows_are_class_tokens_and_patches(architecture: str, recipe: Any) -> None:
    student = ForeignStudent(recipe().backbone, seed=3).eval()
    crops = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = student.module(pixel_values=crops).last_hidden_state
        rows = student.forward_rows([crops], [None], torch.tensor([0, 2, 5, 9]))
    assert torch.allclose(rows, torch.stack([hidden[0, 0], hidden[0, 2], hidden[1, 0], hidden[1, 4]]), atol=1e-5)
    other = ForeignStudent(recipe().backbone, seed=4).state_dict()
    assert not torch.equal(other["module.embeddings.cls_token"], student.state_dict()["module.embeddings.cls_token"])
    with pytest.raises(FovealError, match="has no mask token"):
        student.forward_rows([crops], [torch.ones(2, 4, dtype=torch.bool)], torch.tensor([0]))
    with pytest.raises(FovealError, match="image height=40 is not a multiple of patch_size=16"):
        student.grid_of(torch.empty(1, 3, 40, 32))


def test_what_does_not_fit_is_refused(recipe: Any, architecture: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"backbone.width is for hf:.* to say; leave it out"):
        recipe("backbone.width=40")
    with pytest.raises(RecipeError, match=r"which only distillation trains; give distill\.teacher"):
        recipe("distill=null")
    with pytest.raises(FovealError, match="cannot be loaded"):
        recipe(variant="hf:/nowhere#random")
    with pytest.raises(RecipeError, match=r"views\.local_size=24 is not a multiple of patch_size=16"):
        recipe("views.local_size=24")
