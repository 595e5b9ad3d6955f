"""Distillation: the objective against a second computation, several students, interruption, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import on_ranks
from torch import Tensor

from foveal.backbone.card import read_card
from foveal.backbone.weights import load_heads, load_model
from foveal.errors import RecipeError, RunError
from foveal.images.imageset import ImageSet
from foveal.objectives.features import feature_loss
from foveal.objectives.gram import gram_loss
from foveal.objectives.koleo import koleo_loss
from foveal.objectives.logits import Logits
from foveal.objectives.sinkhorn import sinkhorn_knopp
from foveal.pretrain.checkpoints.reader import list_checkpoints
from foveal.pretrain.data.loader import MicroBatches, to_batch
from foveal.pretrain.distillation.features import FeatureStudent
from foveal.pretrain.distillation.learner import Distillation
from foveal.pretrain.loop import Outcome, pretrain
from foveal.pretrain.network import Batch, Network
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.run import CHECKPOINTS, read_metrics

CPU = torch.device("cpu")
RATES = {"teacher_temperature": 0.05, "teacher_momentum": 0.9}
# What the tiny recipe sets and "features" does not read.
UNSET = ["views.num_local=0", "heads={}", "objective={}", "teacher={momentum_start: 0.9}"]
FURTHER = "distill.students={small: {variant: vit_nano, depth: 1, patch_size: 16, image_size: 32}}"


@pytest.fixture
def recipe(tiny: Any, make_teacher: Any) -> Any:
    teacher = make_teacher()

    def make(*overrides: str, objective: str = "heads", out: str = "run") -> Recipe:
        unset = UNSET if objective == "features" else []
        return tiny(f"distill.teacher={teacher}", f"distill.objective={objective}", *unset, *overrides, out=out)

    return make


def _batches(recipe: Recipe) -> list[Batch]:
    raw = MicroBatches(ImageSet.open(recipe.images), recipe)
    return [to_batch(raw[n], mean=recipe.channel_mean, std=recipe.channel_std, device=CPU) for n in range(2)]


def _cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    return -(targets * F.log_softmax(logits / 0.1, dim=-1)).sum(-1)


def test_heads_teach_by_all_patches_of_unmasked_crops(recipe: Any, tmp_path: Path) -> None:
    """Every term computed again from whole forward passes of both networks; the batch is one micro-batch of two."""
    chosen = recipe("backbone.drop_path_rate=0", "batch_size=2")
    learner, batch = Distillation(chosen, device=CPU), _batches(chosen)[0]
    found = learner.accumulate([batch], step=0, rates=RATES)
    student = learner.student
    assert isinstance(student, Network)
    teacher, heads = load_model(tmp_path / "big")[0], load_heads(tmp_path / "big")
    with torch.no_grad():
        seen, taught = student.backbone(batch.global_crops), teacher(batch.global_crops)
        local = student.backbone(batch.local_crops).cls

        def teacher_logits(name: str, tokens: Tensor) -> Tensor:
            part = {key.removeprefix(f"{name}."): value for key, value in heads.items() if key.startswith(name)}
            for layer in (0, 2, 4):
                tokens = F.linear(tokens, part[f"mlp.{layer}.weight"], part[f"mlp.{layer}.bias"])
                tokens = F.gelu(tokens) if layer < 4 else F.normalize(tokens, dim=-1)
            direction = part["last_layer.weight_v"]
            return tokens @ (direction / direction.norm(dim=1, keepdim=True) * part["last_layer.weight_g"]).T

        def student_logits(head: Any, tokens: Tensor) -> Tensor:
            logits: Tensor = head(tokens) @ head.prototypes().T
            return logits

        def targets(logits: Tensor) -> Tensor:
            part = Logits(logits, torch.eye(logits.shape[1]))
            return sinkhorn_knopp([part], temperature=0.05)[0](slice(0, len(part)))

        cls_targets = targets(teacher_logits("dino_head", taught.cls))
        patch_targets = targets(teacher_logits("ibot_head", taught.patches.flatten(0, 1)))
        ibot = _cross_entropy(patch_targets, student_logits(student.ibot_head, seen.patches.flatten(0, 1))).mean()
        logits = student_logits(student.dino_head, seen.cls)
        swapped = torch.cat([cls_targets[2:], cls_targets[:2]])
        dino_global = _cross_entropy(swapped, logits).mean() * 2 / 8
        of_local = student_logits(student.dino_head, local).view(3, 2, -1)
        dino_local = sum(_cross_entropy(cls_targets.view(2, 2, -1)[v], of_local).mean(1).sum() for v in (0, 1)) / 8
        koleo = koleo_loss(seen.cls[:2]) + koleo_loss(seen.cls[2:])
    assert found["ibot"].item() == pytest.approx(ibot.item(), rel=1e-5)
    assert found["dino_global"].item() == pytest.approx(dino_global.item(), rel=1e-5)
    assert found["dino_local"].item() == pytest.approx(float(dino_local), rel=1e-5)
    assert found["koleo"].item() == pytest.approx(koleo.item(), rel=1e-4)
    total = ibot + dino_global + dino_local + 0.1 * koleo
    assert found["loss"].item() == pytest.approx(float(total), rel=1e-5)


def test_features_teach_what_the_formula_says(recipe: Any, tmp_path: Path) -> None:
    """Two micro-batches, weights of 2, 3 and 5; the moments are those of all 11 images' global crops."""
    weights = ["distill.cls_weight=2", "distill.patch_weight=3", "distill.relation_weight=5"]
    chosen = recipe(*weights, "backbone.drop_path_rate=0", objective="features")
    learner, batches = Distillation(chosen, device=CPU), _batches(chosen)
    found = learner.accumulate(batches, step=0, rates=RATES)
    student = learner.student
    assert isinstance(student, FeatureStudent)
    teacher = load_model(tmp_path / "big")[0]
    raw = MicroBatches(ImageSet.open(chosen.images), chosen)
    every = [to_batch(raw[n], mean=chosen.channel_mean, std=chosen.channel_std, device=CPU) for n in range(6)]
    with torch.no_grad():
        measured = [teacher(batch.global_crops) for batch in every]
        moments = []
        for rows in (torch.cat([t.cls for t in measured]), torch.cat([t.patches.flatten(0, 1) for t in measured])):
            moments.append((rows.mean(0), rows.std(0, correction=0)))
        losses = []
        for batch in batches:
            taught, seen = teacher(batch.global_crops), student.backbone(batch.global_crops)
            wanted = [(rows - m) / s for rows, (m, s) in zip((taught.cls, taught.patches), moments, strict=True)]
            cls = feature_loss(student.cls_projector(seen.cls), wanted[0])
            patch = feature_loss(student.patch_projector(seen.patches).flatten(0, 1), wanted[1].flatten(0, 1))
            losses.append((cls, patch, gram_loss(seen.patches, taught.patches)))
    cls, patch, relation = (float(sum(values)) / 2 for values in zip(*losses, strict=True))
    got = {name: value.item() for name, value in found.items()}
    assert got == pytest.approx(
        {"cls": cls, "patch": patch, "relation": relation, "loss": 2 * cls + 3 * patch + 5 * relation}, rel=1e-4
    )
    assert student.cls_projector.weight.grad is not None
    assert student.backbone.cls_token.grad is not None


@pytest.mark.parametrize("objective", ["heads", "features"])
def test_an_interrupted_run_with_two_students_equals_the_whole_to_the_bit(
    recipe: Any, tmp_path: Path, objective: str
) -> None:
    pretrain(recipe(FURTHER, objective=objective, out="whole"))
    for _ in range(3):
        pretrain(recipe(FURTHER, objective=objective, out="parts"), stop_after=2)
    bits = []
    for out in ("whole", "parts"):
        newest = list_checkpoints(tmp_path / out / CHECKPOINTS)[-1]
        files = [*newest.glob("*.safetensors"), *(tmp_path / out).glob("**/model.safetensors")]
        bits.append({f"{path.parent.name}/{path.name}": path.read_bytes() for path in files})
    assert bits[0] == bits[1]
    assert {"step_00000006/average.safetensors", "model/model.safetensors", "small/model.safetensors"} <= bits[0].keys()


@pytest.mark.parametrize("objective", ["heads", "features"])
def test_two_processes_equal_one_to_the_bit_in_canonical_runs(recipe: Any, tmp_path: Path, objective: str) -> None:
    settings = ["batch_size=8", "total_steps=3", "parallel.canonical=true", FURTHER]
    pretrain(recipe(*settings, objective=objective, out="1"))
    outcomes = on_ranks(2, pretrain, recipe(*settings, objective=objective, out="2"))
    assert all(outcome == Outcome(tmp_path / "2", 3, None) for outcome in outcomes), outcomes
    for folder in ("model", "students/small"):
        one, other = (load_model(tmp_path / out / folder)[0].state_dict() for out in ("1", "2"))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    one, other = (read_metrics(tmp_path / out)[-1] for out in ("1", "2"))
    losses = [key for key in one if key.startswith(("loss", "cls", "patch", "ibot", "dino", "koleo"))]
    assert [other[key] for key in losses] == pytest.approx([one[key] for key in losses], rel=1e-6)


@pytest.mark.parametrize("objective", ["heads", "features"])
def test_students_of_one_run_learn_as_each_would_alone(recipe: Any, tmp_path: Path, objective: str) -> None:
    pretrain(recipe(FURTHER, objective=objective, out="both"))
    pretrain(recipe(objective=objective, out="first"))
    pretrain(
        recipe(
            "backbone.depth=1",
            "backbone.patch_size=16",
            "backbone.layerscale_init=1e-5",
            "backbone.drop_path_rate=0",
            objective=objective,
            out="second",
        )
    )
    for alone, together in (("first/model", "both/model"), ("second/model", "both/students/small")):
        if objective == "features" and alone == "second/model":
            continue  # the moments are taken on the first student's grid
        one, other = (load_model(tmp_path / folder)[0].state_dict() for folder in (alone, together))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    metrics = read_metrics(tmp_path / "both")[-1]
    assert metrics["loss_small"] != metrics["loss"]
    assert "grad_norm_small_backbone" in metrics


def test_the_average_is_the_model_and_never_acts_on_training(recipe: Any, tmp_path: Path) -> None:
    for out, momentum in (("follows", 0.0), ("stays", 1.0)):
        pretrain(recipe(f"teacher.momentum_start={momentum}", f"teacher.momentum_end={momentum}", out=out))
    students = [
        (list_checkpoints(tmp_path / out / CHECKPOINTS)[-1] / "student.safetensors").read_bytes()
        for out in ("follows", "stays")
    ]
    assert students[0] == students[1]
    follows, stays = (load_model(tmp_path / out / "model")[0].state_dict() for out in ("follows", "stays"))
    trained = Distillation(recipe(), device=CPU).student.state_dict()  # as it was drawn
    assert all(torch.equal(value, trained[f"backbone.{name}"]) for name, value in stays.items())
    assert not torch.equal(follows["cls_token"], stays["cls_token"])


def test_the_card_names_the_teacher_and_takes_the_stricter_licence(
    recipe: Any, make_teacher: Any, tmp_path: Path
) -> None:
    teacher = make_teacher("strict", licence="CC-BY-NC-4.0")
    pretrain(recipe(f"distill.teacher={teacher}", FURTHER))
    for folder in ("model", "students/small"):
        card = read_card(tmp_path / "run" / folder)
        assert (card.licence.name, [parent.name for parent in card.parents]) == ("CC-BY-NC-4.0", ["strict"])
        assert card.parents[0].sha256 == json.loads((teacher / "model.json").read_text())["sha256"]
    assert read_card(tmp_path / "run/students/small").backbone.depth == 1


def test_another_teacher_is_refused_when_a_run_continues(recipe: Any, make_teacher: Any) -> None:
    pretrain(recipe(), stop_after=2)
    make_teacher(seed=6)  # in the same place
    with pytest.raises(RunError, match=r"is not the teacher that .* began with \(identity \w{12}, now \w{12}\)"):
        pretrain(recipe())


@pytest.mark.parametrize(
    ("overrides", "objective", "message"),
    [
        (["heads.dino.num_prototypes=17"], "heads", "has 16; set heads.dino.num_prototypes=16"),
        (["heads.ibot.num_prototypes=9"], "heads", "has 10; set heads.ibot.num_prototypes=10"),
        (["heads.ibot=null"], "heads", "set heads.ibot.num_prototypes=10"),
        (["masks.probability=0.3"], "heads", "masks.probability has no effect with distill.objective=heads"),
        (["parallel.recompute=true"], "heads", "parallel.recompute has no effect with distill.objective=heads"),
        (["distill.patch_weight=2"], "heads", "distill.patch_weight has no effect with distill.objective=heads"),
        (["heads.dino.hidden=3"], "features", "heads.dino has no effect with distill.objective=features"),
        (["teacher.temperature_end=0.1"], "features", "teacher.temperature_end has no effect"),
        (["views.num_local=2"], "features", "set views.num_local=0"),
        (["distill.students={Small: {variant: vit_nano}}"], "heads", "distill.students.Small is no name"),
        (["distill.students={s: {variant: vit_nano, patch_size: 14, image_size: 28}}"], "heads", "use 28 or 42"),
        (["distill.students={s: {variant: vit_nano, channels: 2, patch_size: 8, image_size: 32}}"], "heads", "equal"),
        (["distill.objective=feature"], "heads", "distill.objective"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    recipe: Any, overrides: list[str], objective: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        Distillation(recipe(*overrides, objective=objective), device=CPU)


def test_a_teacher_without_heads_is_refused_with_what_to_do(recipe: Any, make_teacher: Any) -> None:
    bare = make_teacher("bare", heads=False)
    with pytest.raises(RecipeError, match=r"needs a teacher with heads.*use distill.objective=features"):
        Distillation(recipe(f"distill.teacher={bare}"), device=CPU)


def test_heads_learned_on_a_frozen_backbone_can_teach(
    tiny: Any, recipe: Any, make_teacher: Any, tmp_path: Path
) -> None:
    """The backbone stays what it was to the bit, and its new heads serve as any others."""
    bare = make_teacher("bare", heads=False)
    values = ["optimizer.freeze_backbone_steps=6", "optimizer.freeze_last_layer_steps=0", "objective.koleo_weight=0"]
    pretrain(tiny(f"start={bare}", "backbone={}", *values, out="relearned"))
    first, relearned = (load_model(folder)[0].state_dict() for folder in (bare, tmp_path / "relearned/model"))
    assert all(torch.equal(value, relearned[name]) for name, value in first.items())
    losses = [line["grad_norm_dino_head"] for line in read_metrics(tmp_path / "relearned")]
    assert min(losses) > 0
    for source in (tmp_path / "relearned/model", tmp_path / "relearned"):  # the model, or the run that made it
        Distillation(recipe(f"distill.teacher={source}"), device=CPU)
    with pytest.raises(RecipeError, match="above total_steps"):
        tiny(f"start={bare}", "backbone={}", "optimizer.freeze_backbone_steps=5")
