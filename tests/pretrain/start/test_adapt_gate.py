"""The gate: what it measures, when it ends a run, which model stays, and what an interruption changes: nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

from foveal.backbone.card import Card, read_card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import load_tensors
from foveal.errors import RecipeError, RunError
from foveal.images.imageset import ImageSet
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.start.gate import Gate
from foveal.pretrain.start.settings import Gate as Settings

MakeRecipe = Callable[..., Recipe]

CONFIG = backbone_config("vit_nano", depth=2, patch_size=8, image_size=32, layerscale_init=0.5)
CARD = Card(name="tiny", backbone=CONFIG, crop_size=32, resize_size=32)


def network(seed: int) -> VisionTransformer:
    return VisionTransformer(CONFIG).init_weights(torch.Generator().manual_seed(seed)).eval()


def make_gate(photos: Path, path: Path, **limits: object) -> Gate:
    return Gate(
        Settings.model_validate({"every_steps": 1, "num_neighbours": 3, **limits}),
        images=ImageSet.open(photos),
        backbone=network(0),
        card=CARD,
        probe=None,
        path=path,
        device=torch.device("cpu"),
    )


def test_the_start_agrees_with_itself(photos: Path, tmp_path: Path) -> None:
    gate = make_gate(photos, tmp_path / "gate.json", min_agreement=1, min_rank_share=1)
    assert gate.judgements[0].scores["agreement"] == 1
    assert gate.judge(network(0), CARD, step=4).failed == ""
    assert gate.passed == 4


def test_agreement_is_the_share_of_neighbours_that_stayed(photos: Path, tmp_path: Path) -> None:
    gate = make_gate(photos, tmp_path / "gate.json", min_agreement=0.9)
    judgement = gate.judge(network(1), CARD, step=4)
    images = ImageSet.open(photos)

    def nearest(backbone: VisionTransformer) -> list[set[int]]:
        features = gate._features(backbone, CARD)
        cosines = torch.nn.functional.cosine_similarity(features[:, None].double(), features[None].double(), dim=2)
        order = cosines.fill_diagonal_(-2).argsort(descending=True)[:, :3]
        return [set(row.tolist()) for row in order]

    shared = [len(a & b) for a, b in zip(nearest(network(0)), nearest(network(1)), strict=True)]
    assert judgement.scores["agreement"] == pytest.approx(sum(shared) / (3 * len(images)))
    assert judgement.failed.startswith("only ")
    assert (gate.passed, gate.failed) == (0, judgement)


def test_features_on_one_line_fail_by_their_rank(photos: Path, tmp_path: Path) -> None:
    gate = make_gate(photos, tmp_path / "gate.json", min_agreement=0, min_rank_share=0.5)
    flat = network(0)
    with torch.no_grad():
        flat.norm.weight.mul_(1e-3)
        flat.norm.bias.fill_(1.0)
    assert gate.judge(flat, CARD, step=4).failed.startswith("the effective rank fell from ")


def test_more_neighbours_than_images_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gate\.num_neighbours=11 of 11 images"):
        make_gate(photos, tmp_path / "gate.json", num_neighbours=11)


def test_a_damaged_file_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "gate.json").write_text("[{")
    with pytest.raises(RunError, match=r"gate\.json is damaged"):
        make_gate(photos, tmp_path / "gate.json")


@pytest.fixture
def gated(tiny: MakeRecipe) -> MakeRecipe:
    """Recipes that start from a finished run and are judged every two steps."""
    first = pretrain(tiny("total_steps=3", out="first")).run

    def make(*overrides: str, out: str = "run") -> Recipe:
        gate = ("gate.every_steps=2", "gate.num_neighbours=3", "teacher.momentum_start=0", "teacher.momentum_end=0")
        return tiny(f"start={first}", *gate, *overrides, out=out)

    return make


def test_a_run_that_passes_tells_so_in_its_card(gated: MakeRecipe) -> None:
    outcome = pretrain(gated("gate.min_agreement=0", "gate.min_rank_share=0"))
    assert [found.step for found in outcome.judgements] == [0, 2, 4, 6]
    assert not any(found.failed for found in outcome.judgements)
    card = read_card(outcome.run / "model")
    assert card.lineage["steps"] == 6
    assert [entry["step"] for entry in card.lineage["gate"]] == [0, 2, 4, 6]  # type: ignore[attr-defined]


def test_a_run_that_fails_ends_and_leaves_the_last_model_that_passed(gated: MakeRecipe, tmp_path: Path) -> None:
    recipe = gated("gate.min_agreement=1", "optimizer.base_lr=3", "optimizer.warmup_steps=0")
    outcome = pretrain(recipe)
    assert outcome.step < recipe.total_steps
    assert outcome.judgements[-1].failed
    card = read_card(outcome.run / "model")
    assert card.lineage["steps"] == 0
    assert card.lineage["gate"][-1]["failed"] == outcome.judgements[-1].failed  # type: ignore[index]
    before, after = (load_tensors(tmp_path / run / "model" / "model.safetensors") for run in ("first", "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = pretrain(recipe)  # it is over
    assert again.judgements == outcome.judgements
    assert again.step <= outcome.step


def test_interruptions_change_nothing(gated: MakeRecipe, tmp_path: Path) -> None:
    limits = ("gate.min_agreement=0", "gate.min_rank_share=0")
    whole = pretrain(gated(*limits, out="whole"))
    pretrain(gated(*limits, out="broken"), stop_after=1)
    pretrain(gated(*limits, out="broken"), stop_after=2)
    (card,) = [read_card(tmp_path / "broken" / "model")]
    assert card.lineage["steps"] == 2  # step 3 was never judged
    assert pretrain(gated(*limits, out="broken")).judgements == whole.judgements
    a, b = (load_tensors(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_labels_take_the_place_of_the_other_limits(gated: MakeRecipe, tmp_path: Path) -> None:
    for part in ("train", "test"):
        lines = [f"{tmp_path / 'photos'}/{i:02d}.{'png' if i % 2 else 'jpg'}\t{i % 3}" for i in range(6)]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines) + "\n")
    knn = (f"knn.train={tmp_path / 'train.txt'}", f"knn.test={tmp_path / 'test.txt'}", "knn.every_steps=6", "knn.k=1")
    outcome = pretrain(gated(*knn, "gate.min_agreement=1", "optimizer.base_lr=3", "optimizer.warmup_steps=0"))
    assert outcome.step == 6
    assert all(found.scores["knn"] == 100 for found in outcome.judgements)  # each image is its own neighbour


@pytest.mark.parametrize("begins_with", [False, True])
def test_labels_may_not_come_or_go_when_a_run_continues(gated: MakeRecipe, tmp_path: Path, begins_with: bool) -> None:
    lines = [f"{tmp_path / 'photos'}/{i:02d}.{'png' if i % 2 else 'jpg'}\t{i % 3}" for i in range(6)]
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    labels = tmp_path / "labels.txt"
    knn = (f"knn.train={labels}", f"knn.test={labels}", "knn.every_steps=6", "knn.k=1")
    limits = ("gate.min_agreement=0", "gate.min_rank_share=0")
    pretrain(gated(*limits, *(knn if begins_with else ())), stop_after=1)
    with pytest.raises(RecipeError, match="with knn, by which" if begins_with else "without knn, by which"):
        pretrain(gated(*limits, *(() if begins_with else knn)))


def test_two_processes_come_to_the_judgements_and_the_bits_of_one(gated: MakeRecipe, tmp_path: Path) -> None:
    settings = ("parallel.canonical=true", "device=cpu", "gate.min_agreement=0", "gate.min_rank_share=0")
    settings += ("lora.rank=2", "gram={anchor: start}", "optimizer.freeze_backbone_steps=1")
    one = pretrain(gated(*settings, out="one"))
    two = on_ranks(2, pretrain, gated(*settings, out="two"))
    assert [outcome.step for outcome in two] == [6, 6]
    assert two[0].judgements == one.judgements
    a, b = (load_tensors(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    assert all(torch.equal(a[name], b[name]) for name in a)
