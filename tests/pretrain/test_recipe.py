import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.errors import RecipeError
from foveal.pretrain.recipe import Recipe, build_recipe, dump_recipe, load_recipe, recipe_names

FOLDERS = ["images=photos", "out=run"]


CONTINUED = ["relearn_heads", "adapt", "adapt_lora", "vitl14_highres", "cifar10_highres"]


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipe_loads_and_says_where_it_comes_from(name: str, tmp_path: Path) -> None:
    config = backbone_config("vit_nano", depth=1, patch_size=2, image_size=32)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    save_model(tmp_path / "model", backbone, Card(name="start", backbone=config, crop_size=32, resize_size=32))
    given = [*FOLDERS, f"start={tmp_path / 'model'}"] if name in CONTINUED else FOLDERS
    given = [*given, "distill.teacher=model"] if name.startswith("distill") else given
    recipe = load_recipe(name, given)
    assert (recipe.images, recipe.out) == ("photos", "run")
    assert load_recipe(name, given) == recipe


@pytest.mark.parametrize("name", CONTINUED)
def test_a_recipe_that_continues_asks_for_its_start(name: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe '{name}': no network is named; add start=MODEL"):
        load_recipe(name, FOLDERS)


@pytest.mark.parametrize("name", ["vitl16_in1k_short", "vitl14_in22k", "vitg14_lvd142m"])
def test_published_recipe_has_a_header(name: str) -> None:
    import foveal.pretrain.recipe

    folder = Path(foveal.pretrain.recipe.__file__).parents[1] / "recipes"
    header = [line for line in (folder / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    for word in ("Source:", "Hardware:", "Expected:", f"Command:  foveal pretrain --recipe {name} "):
        assert any(word in line for line in header), word


def test_names_are_those_of_the_issue() -> None:
    wanted = {"demo", "cifar10_small", "vitl16_in1k_short", "vitl14_in22k", "vitg14_lvd142m"}
    assert wanted <= set(recipe_names())


def _flat(recipe: Recipe) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(value: Any, prefix: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{prefix}.{key}" if prefix else key)
        else:
            flat[prefix] = value

    walk(recipe.model_dump(), "")
    return flat


# The table of published recipes, section 4 of the reference page.
_COMMON = {
    "precision": "bf16",
    "teacher.temperature_start": 0.04,
    "teacher.temperature_end": 0.07,
    "teacher.temperature_warmup_steps": 37_500,
    "teacher.momentum_end": 1.0,
    "optimizer.min_lr": 1e-6,
    "optimizer.patch_embed_lr_multiplier": 0.2,
    "optimizer.freeze_last_layer_steps": 1250,
    "optimizer.weight_decay_start": 0.04,
    "optimizer.clip": 3.0,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "objective.koleo_weight": 0.1,
    "objective.dino_weight": 1.0,
    "objective.ibot_weight": 1.0,
    "objective.student_temperature": 0.1,
    "objective.center_momentum": 0.9,
    "objective.batch_scope": "step",
    "masks.probability": 0.5,
    "masks.ratio_min": 0.1,
    "masks.ratio_max": 0.5,
    "views.global_size": 224,
    "views.num_local": 8,
    "views.global_scale": (0.32, 1.0),
    "views.local_scale": (0.05, 0.32),
    "views.blur": "as_trained",
    "backbone.layerscale_init": 1e-5,
    "backbone.num_registers": 0,
}
_IN22K = {
    "batch_size": 3072,
    "total_steps": 625_000,
    "optimizer.base_lr": 2e-4,
    "optimizer.warmup_steps": 100_000,
    "optimizer.weight_decay_end": 0.2,
    "optimizer.layer_decay": 1.0,
    "teacher.momentum_start": 0.994,
    "backbone.drop_path_rate": 0.4,
    "backbone.ffn": "swiglu",
    "backbone.patch_size": 14,
    "objective.centering": "sinkhorn_knopp",
    "heads.dino.num_prototypes": 131_072,
    "heads.dino.bottleneck": 384,
    "heads.dino.hidden": 2048,
    "heads.ibot.num_prototypes": 131_072,
    "heads.ibot.bottleneck": 256,
    "heads.ibot.hidden": 2048,
    "views.local_size": 98,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "vitl16_in1k_short": {
        "batch_size": 2048,
        "total_steps": 125_000,
        "optimizer.base_lr": 4e-3,
        "optimizer.warmup_steps": 12_500,
        "optimizer.weight_decay_end": 0.4,
        "optimizer.layer_decay": 0.9,
        "teacher.momentum_start": 0.992,
        "backbone.width": 1024,
        "backbone.depth": 24,
        "backbone.num_heads": 16,
        "backbone.drop_path_rate": 0.3,
        "backbone.ffn": "mlp",
        "backbone.patch_size": 16,
        "objective.centering": "centering",
        "objective.koleo_group": 64,
        "heads.dino.num_prototypes": 65_536,
        "heads.dino.bottleneck": 256,
        "heads.dino.hidden": 2048,
        "heads.ibot": None,
        "views.local_size": 96,
    },
    "vitl14_in22k": {
        **_IN22K,
        "backbone.width": 1024,
        "backbone.depth": 24,
        "backbone.num_heads": 16,
        "objective.koleo_group": 32,
    },
    "vitg14_lvd142m": {
        **_IN22K,
        "backbone.width": 1536,
        "backbone.depth": 40,
        "backbone.num_heads": 24,
        "objective.koleo_group": 12,
    },
}
PEAK_LR = {"vitl16_in1k_short": 5.66e-3, "vitl14_in22k": 3.46e-4, "vitg14_lvd142m": 3.46e-4}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    recipe = load_recipe(name, FOLDERS)
    flat = _flat(recipe)
    expected = _COMMON | PUBLISHED[name]
    assert {key: flat[key] for key in expected} == expected
    assert recipe.lr == pytest.approx(PEAK_LR[name], rel=2e-3)  # given with three digits


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_sise=8", r"unknown recipe key 'batch_sise'; did you mean 'batch_size'\?"),
        ("optimizer.base_lrr=1", r"unknown recipe key 'optimizer.base_lrr'; did you mean 'optimizer.base_lr'\?"),
        ("backbone.pach_size=8", r"did you mean 'backbone.patch_size'\?"),
        ("heads.ibot.bottle=8", r"did you mean 'heads.ibot.bottleneck'\?"),
        ("views.num_locals=8", r"did you mean 'views.num_local'\?"),
        ("batch_size", "'batch_size' is not an override; write key=value"),
        ("batch_size=many", r"batch_size: Input should be a valid integer.*got 'many'"),
        ("batch_size=0", r"batch_size: Input should be greater than 0 \(got 0\)"),
        ("batch_size=2.5", "batch_size: Input should be a valid integer"),
        ("optimizer.base_lr=.nan", "optimizer.base_lr: .*finite"),
        ("optimizer.base_lr=.inf", "optimizer.base_lr: .*finite"),
        ("optimizer.base_lr=[1, 2", "optimizer.base_lr=.* cannot be read as a value"),
        ("precision=fp8", r"precision: Input should be 'fp32' or 'bf16' \(got 'fp8'\)"),
        ("objective.centering=sinkhorn", "objective.centering: Input should be"),
        ("backbone.variant=vitt", r"variant 'vitt' is not known; did you mean 'vits'\?; known: vit_nano"),
        ("backbone=vits", "backbone: Input should be a valid dictionary"),
        ("heads.dino.num_prototypes=1", "heads.dino.num_prototypes: Input should be greater than 1"),
        ("masks.ratio_min=0.6", "masks.ratio_min=0.6 is above masks.ratio_max=0.5"),
        ("micro_batch_size=3", "batch_size=4 is not a multiple of micro_batch_size=3.*use 2 or 4"),
        ("batch_size=1 micro_batch_size=1", "objective.koleo_weight has no effect with batch_size=1"),
        ("micro_batch_size=1 objective.batch_scope=micro_batch", "has no effect with micro_batch_size=1"),
        ("objective.koleo_group=3", "batch_size=4 is not a multiple of objective.koleo_group=3"),
        (
            "objective.koleo_group=4 objective.batch_scope=micro_batch",
            "micro_batch_size=2 is not a multiple of objective.koleo_group=4",
        ),
        ("objective.koleo_group=2 objective.koleo_weight=0", "objective.koleo_group has no effect with"),
        ("objective.batch_scope=rank", "objective.batch_scope: Input should be 'step' or 'micro_batch'"),
        ("optimizer.warmup_steps=7", "optimizer.warmup_steps=7 is above total_steps=6"),
        ("teacher.temperature_warmup_steps=9", "temperature_warmup_steps=9 is above total_steps=6"),
        ("views.global_scale=[0.9, 0.3]", r"global_scale=\(0.9, 0.3\) is not a range"),
        ("views.blur_kernel_size=4", "blur_kernel_size=4 has no centre; use 3 or 5"),
        ("backbone.image_size=225", "image_size=225 is not a multiple of patch_size=8; use 224 or 232"),
        ("views.global_size=33", "views.global_size=33 is not a multiple of patch_size=8; use 32 or 40"),
        ("views.local_size=7", "views.local_size=7 is not a multiple of patch_size=8; use 8"),
        ("features.crop_size=33", "features.crop_size=33 is not a multiple of patch_size=8; use 32 or 40"),
        ("features.resize_size=31", "features.resize_size=31 is below the crop size 32; use 32 or more"),
        ("images=", "needs images; add images=..."),
    ],
)
def test_bad_override_is_refused_in_words(tiny: Any, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny(*re.split(r" (?=[a-z_.]+=)", override))


def test_missing_folders_are_named_together() -> None:
    with pytest.raises(RecipeError, match=r"recipe 'demo' needs images and out; add images=\.\.\. out=\.\.\."):
        load_recipe("demo")


def test_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe 'dmo'; did you mean 'demo'\?; built in: .*vitl14_in22k"):
        load_recipe("dmo", FOLDERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 8", r"unknown recipe key 'batch_sise'; did you mean 'batch_size'\?"),
        (
            "total_steps: 1\nbatch_size: 4\nbackbone: {variant: vits}\noptimizer: {base_lrr: 1}",
            r"'optimizer.base_lrr'; did you mean 'optimizer.base_lr'\?",
        ),
        ("total_steps: 1\nbatch_size: 4\nbackbone: {variant: vits}\nviews: {blurs: x}", r"did you mean 'views.blur'\?"),
        ("batch_size: 8\nbackbone: {variant: vits}", "total_steps is missing; add total_steps=...$"),
        ("- 1\n- 2", "holds list, expected keys and values"),
        ("", "holds NoneType, expected keys and values"),
        ("a: [1", "is not valid YAML"),
    ],
)
def test_bad_file_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path), FOLDERS)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no.yaml does not exist; built-in recipes: .*demo"):
        load_recipe(str(tmp_path / "no.yaml"), FOLDERS)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(tmp_path / "binary.yaml"), FOLDERS)


def test_numbers_are_read_as_people_write_them(tiny: Any) -> None:
    recipe = tiny("optimizer.base_lr=1e-3", "optimizer.min_lr=2E-7", "total_steps=1e2", "seed=3")
    assert (recipe.optimizer.base_lr, recipe.optimizer.min_lr, recipe.total_steps, recipe.seed) == (1e-3, 2e-7, 100, 3)


def test_paths_are_taken_as_they_are() -> None:
    for text in ("2024", "1e5", "null", "*.tar", "data/{000..012}.tar", "{a,b}.tar", "a: b", "yes"):
        assert load_recipe("demo", [f"images={text}", "out=007"]).images == text
    assert load_recipe("demo", ["images=a=b", "out=007"]).images == "a=b"
    assert load_recipe("demo", ["images=a", "out=007"]).out == "007"


def test_null_switches_the_patch_head_off_and_a_key_switches_it_on(tiny: Any) -> None:
    assert tiny("heads.ibot=null").heads.ibot is None
    on = tiny("heads.ibot=null", "heads.ibot.num_prototypes=33")
    assert on.heads.ibot is not None
    assert (on.heads.ibot.num_prototypes, on.heads.ibot.bottleneck) == (33, 256)


def test_local_size_is_free_without_local_crops(tiny: Any) -> None:
    assert tiny("views.num_local=0", "views.local_size=7").views.num_local == 0


def test_dump_holds_every_setting_and_reads_back(tiny: Any) -> None:
    recipe = tiny("optimizer.base_lr=1e-3")
    values = yaml.safe_load(dump_recipe(recipe))
    assert values["objective"]["center_momentum"] == 0.9
    assert build_recipe(values, where="dump") == recipe
