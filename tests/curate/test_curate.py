"""A curation from end to end, on pictures whose copies are known."""

import json
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from disks import no_file_above
from PIL import Image
from typer.main import get_command

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.cli.main import app, main
from foveal.curate.audit import AuditSettings
from foveal.curate.cluster import ClusterSettings
from foveal.curate.dedup import DedupSettings
from foveal.curate.recipe import load_recipe, options_of, recipe_names
from foveal.curate.retrieve import RetrieveSettings
from foveal.curate.run import Curated, curate
from foveal.curate.sample import SampleSettings
from foveal.errors import FovealError, RecipeError
from foveal.images.imageset import ImageSet

KINDS, OF_A_KIND = 4, 6
# Random weights: pictures of a kind have cosines to 0.997, a resized copy has 0.9995 to its original.
SETTINGS = [
    "dedup.similarity=0.999",
    "dedup.keep_out_similarity=0.999",
    "audit.min_side=16",
    "cluster.levels=[4,2]",
    "retrieve.per_query=3",
    "embed.engine=torch",
]


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """pool/ of KIND_NUMBER.png, KIND_z.png a copy of number 0; seeds/ of kinds 0 and 1; eval/ a copy of 2_1; model/."""
    generator = np.random.default_rng(0)
    for name in ("pool", "seeds", "eval"):
        (tmp_path / name).mkdir()
    for kind in range(KINDS):
        base = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((48, 40))
        for number in range(OF_A_KIND + 1):
            noise = generator.integers(-60, 60, (5, 6, 3)).repeat(8, 0).repeat(8, 1)
            picture = Image.fromarray((np.asarray(base) + noise).clip(0, 255).astype(np.uint8))
            seed = number == OF_A_KIND
            if not seed or kind < 2:
                picture.save(tmp_path / ("seeds" if seed else "pool") / f"{kind}_{number}.png")
        smaller(tmp_path / f"pool/{kind}_0.png", tmp_path / f"pool/{kind}_z.png")
    (tmp_path / "pool/same.png").write_bytes((tmp_path / "pool/3_1.png").read_bytes())
    (tmp_path / "pool/broken.png").write_bytes(b"no picture")
    smaller(tmp_path / "pool/2_1.png", tmp_path / "eval/0.png")
    config = backbone_config("vit_nano", depth=1, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    save_model(tmp_path / "model", backbone, Card(name="tiny", backbone=config, crop_size=28, resize_size=32))
    return tmp_path


def smaller(source: Path, target: Path) -> None:
    Image.open(source).resize((44, 37), Image.Resampling.BICUBIC).save(target)


def made(pile: Path, *overrides: str, target: int | None = 5, out: str = "set", **given: tuple[str, ...]) -> Curated:
    recipe = load_recipe(
        "curate_small",
        [f"model={pile / 'model'}", *SETTINGS, *overrides],
        pool=str(pile / "pool"),
        out=str(pile / out),
        target=target,
        **{name: tuple(str(pile / one) for one in paths) for name, paths in given.items()},
    )
    return curate(recipe)


def names(curated: Curated) -> list[str]:
    return [Path(uri).name for uri in ImageSet.open(curated.out).rows.column("uri").to_pylist()]


def counts(curated: Curated) -> dict[str, dict[str, int]]:
    return {one["stage"]: one["by_reason"] for one in curated.summary["flow"]}


def test_copies_fall_and_what_resembles_the_seeds_stays(pile: Path) -> None:
    curated = made(pile, seeds=("seeds",), keep_out=("eval",))
    found = counts(curated)
    assert sum(found["audit"].values()) == 2  # broken.png, same.png or 3_1.png
    assert found["dedup"] == {"duplicate": KINDS, "keep-out": 1}
    assert sum(found["retrieve"].values()) == KINDS * OF_A_KIND - 1 - 6
    rows = ImageSet.open(curated.out).rows.to_pylist()
    assert len(rows) == 5
    kept = names(curated)
    assert not {"broken.png", "2_1.png", "same.png"} & set(kept)
    assert len(set(kept)) == 5
    for row in rows:
        assert row["method"] == "sample-based"
        assert row["query_set"] == "seeds"
        assert Path(row["query"]).name in ("0_6.png", "1_6.png")
        assert row["score"] > 0.9
        assert 0 <= row["cluster.2"] < 2
        assert len(row["sha256"]) == 64


def test_the_page_shows_every_stage_and_needs_no_network(pile: Path) -> None:
    curated = made(pile, seeds=("seeds",), keep_out=("eval",))
    page = (curated.out / "report.html").read_text()
    for text in ("4 removed: duplicate", "1 removed: keep-out", "6 retrieved", "2_1.png", "foveal dedup", "tiny"):
        assert text in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in re.sub(r"data:image/jpeg;base64,[^\"]+", "", page)


def test_a_finished_set_is_returned_and_a_late_setting_redoes_late_stages_only(pile: Path) -> None:
    first = made(pile, seeds=("seeds",))
    times = {path: path.stat().st_mtime_ns for path in first.out.rglob("*") if path.is_file()}
    assert made(pile, seeds=("seeds",)).summary == first.summary
    assert times == {path: path.stat().st_mtime_ns for path in first.out.rglob("*") if path.is_file()}
    second = made(pile, "sample.seed=1", target=4, seeds=("seeds",))
    folders = {one["stage"]: one["folder"] for one in first.summary["flow"]}
    again = {one["stage"]: one["folder"] for one in second.summary["flow"]}
    assert {name for name in folders if folders[name] != again[name]} == {"sample"}
    assert yaml.safe_load((second.out / "curate.yaml").read_text())["sample"]["seed"] == 1
    back = made(pile, seeds=("seeds",))
    assert back.summary["hash"] == first.summary["hash"]


def test_the_recipe_beside_the_result_repeats_it(pile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pile)
    made(pile, "sample.seed=5", seeds=("seeds",), keep_out=("eval",))
    settings = [*SETTINGS, "model=model", "sample.seed=5"]
    given = ["--target", "5", "--seed", "seeds", "--keep-out", "eval", "--out", "set"]
    assert main(["curate", "pool", *given, *settings]) == 0  # by relative paths: the same again
    first = made(pile, "sample.seed=5", seeds=("seeds",), keep_out=("eval",))
    monkeypatch.chdir("/")
    time = (pile / "set/report.html").stat().st_mtime_ns
    assert main(shlex.split(first.summary["command"])[1:]) == 0
    assert (pile / "set/report.html").stat().st_mtime_ns == time  # nothing was left to do
    command = ["curate", f"{pile}/pool", "--recipe", f"{pile}/set/curate.yaml", "--out", f"{pile}/other"]
    assert main(command) == 0
    assert ImageSet.open(pile / "other").hash == first.summary["hash"]


def test_a_target_above_what_is_left_says_where_it_went_and_a_lower_one_goes_on(pile: Path) -> None:
    few = ("retrieve.per_query=11", "retrieve.candidates=1")  # of which some are near both seeds
    with pytest.raises(FovealError, match=r"target 22 is above the \d+ images .*dedup.* \d+ after retrieve.*per_query"):
        made(pile, *few, target=22, seeds=("seeds",))
    assert not (pile / "set/imageset.json").exists()
    stages = sorted((pile / "set/stages").iterdir())
    assert len(ImageSet.open(made(pile, *few, target=6, seeds=("seeds",)).out)) == 6
    assert set(stages) < set((pile / "set/stages").iterdir())
    made(pile, *few, target=6, seeds=("seeds",), out="other")
    assert (pile / "set/part-00000.parquet").read_bytes() == (pile / "other/part-00000.parquet").read_bytes()


def test_a_full_disk_leaves_finished_stages_and_no_result(pile: Path) -> None:
    with no_file_above(60_000), pytest.raises(FovealError, match=r"cannot be written .* run the same command again"):
        made(pile, seeds=("seeds",))  # the page is larger
    assert not (pile / "set/summary.json").exists()
    assert len(list(pile.glob("set/stages/*/removed.parquet"))) == 5
    stages = {path: path.stat().st_mtime_ns for path in pile.glob("set/stages/*/removed.parquet")}
    assert len(names(made(pile, seeds=("seeds",)))) == 5
    assert stages == {path: path.stat().st_mtime_ns for path in stages}


def test_every_stage_is_repeated_by_the_command_that_the_page_gives(pile: Path) -> None:
    curated = made(pile, "retrieve.mode=cluster", "retrieve.min_queries=0", seeds=("seeds",), keep_out=("eval",))
    commands = [command for entry in curated.summary["flow"] for command in entry["commands"]]
    verbs = [shlex.split(command)[1] for command in commands]
    assert verbs == ["audit", "extract", "extract", "dedup", "cluster", "extract", "retrieve", "sample"]
    kept = {path: path.read_bytes() for path in curated.out.glob("stages/*/*.parquet")}
    for path in [*kept, *curated.out.glob("stages/*/summary.json")]:
        path.unlink()  # what is finished would only be opened
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert kept == {path: path.read_bytes() for path in kept}


def test_without_seeds_all_kinds_are_drawn_evenly_and_missing_keep_out_is_told(pile: Path) -> None:
    curated = made(pile, target=8)
    assert [one["stage"] for one in curated.summary["flow"]] == ["audit", "dedup", "cluster", "sample"]
    table = ImageSet.open(curated.out).rows
    assert set(table.column("method").to_pylist()) == {"balanced"}
    of_top = np.bincount(table.column("cluster.2").to_pylist(), minlength=2)
    assert of_top.tolist() == [4, 4]
    assert any("nothing was kept out" in warning for warning in curated.summary["warnings"])


def test_seeds_as_they_are_come_first_from_a_root_of_both(pile: Path) -> None:
    curated = made(pile, "seeds_as_is=true", target=6, seeds=("seeds",))
    images = ImageSet.open(curated.out)
    assert images.root == pile
    assert images.rows.column("method").to_pylist() == ["as is"] * 2 + ["sample-based"] * 4
    assert images.uri(0) == "seeds/0_6.png"
    page = (curated.out / "report.html").read_text()
    assert sum(map(int, re.findall(r"<b>(\d+)</b> after", page))) == 4  # of both clusters, by rows and not by names
    assert any("the 2 images of the seeds are in this set as they are" in one for one in curated.summary["warnings"])
    for index in range(len(images)):
        images.decode(index)
    with pytest.raises(FovealError, match="target 2 is no more than the 2 images of the seeds"):
        made(pile, "seeds_as_is=true", target=2, seeds=("seeds",), out="other")


def test_several_sets_are_kept_out_as_one(pile: Path) -> None:
    (pile / "more").mkdir()
    smaller(pile / "pool/0_3.png", pile / "more/0.png")
    curated = made(pile, keep_out=("eval", "more"))
    assert counts(curated)["dedup"]["keep-out"] == 2


def test_another_descriptor_for_copies_has_stores_of_its_own(pile: Path) -> None:
    curated = made(pile, "copy_embed.size=35", "copy_embed.fit=resize", "copy_embed.engine=torch", seeds=("seeds",))
    assert [one["what_for"] for one in curated.summary["descriptors"]] == ["duplicates", "clusters and retrieval"]
    assert len(names(curated)) == 5
    curated = made(pile, "copy_embed.size=35", "copy_embed.fit=resize", target=None, seeds=("seeds",), out="all")
    assert [one["stage"] for one in curated.summary["flow"]] == ["audit", "dedup", "retrieve"]
    verbs = [shlex.split(command)[1] for one in curated.summary["flow"] for command in one["commands"]]
    assert verbs == ["audit", "extract", "dedup", "extract", "extract", "retrieve"]
    assert len(names(curated)) == 6


def test_a_plug_in_of_the_audit_counts_by_what_is_in_its_file(pile: Path) -> None:
    folders = set()
    for limit in (0, 300):
        (pile / "score.py").write_text(f"def score(image):\n    return float(image.mean() > {limit})\n")
        given = (f"scorer={pile / 'score.py'}:score", "dedup=null", "cluster=null")
        if limit == 0:  # every picture is lighter than that
            with pytest.raises(FovealError, match="none of the 30 images is kept"):
                made(pile, *given, target=None)
        else:
            assert counts(made(pile, *given, target=None)) == {"audit": {"duplicate": 1, "unknown_format": 1}}
        folders |= set((pile / "set/stages").glob("audit-*"))
    assert len(folders) == 2


def test_what_cannot_end_well_is_refused_before_any_work(pile: Path) -> None:
    (pile / "empty").mkdir()
    (pile / "full").mkdir()
    (pile / "full/notes.txt").write_text("mine")
    cases = {
        "target 900 is above the 30 images of the pool": {"target": 900},
        "the seeds .* are the same images": {"seeds": ("pool",)},
        "the images to keep out .* are the same images": {"keep_out": ("pool",)},
        "holds no image": {"seeds": ("empty",)},
        "lies inside .* choose another place": {"out": "pool/set"},
        "is not a curated set; choose another place": {"out": "full"},
        "cannot be made": {"out": "full/notes.txt/set"},
    }
    for text, given in cases.items():
        with pytest.raises(FovealError, match=text):
            made(pile, **given)  # type: ignore[arg-type]
    with pytest.raises(FovealError, match=r"400 clusters for 30 images .*cluster\.levels=\[3,1\]"):
        made(pile, "cluster.levels=[400,100]")
    with pytest.raises(FovealError, match="is no file or folder here"):
        made(pile, f"model={pile / 'absent'}")
    with pytest.raises(FovealError, match=r"target 7 is above the 6 images that 2 seeds ask for .*per_query=7"):
        made(pile, target=7, seeds=("seeds",))
    with pytest.raises(FovealError, match=r"the seeds seeds are served by clusters .* and cluster is null"):
        made(pile, "cluster=null", "retrieve.mode=auto", target=None, seeds=("seeds",))
    with pytest.raises(FovealError, match=r"retrieve\.level=3 is above the 2 of cluster\.levels"):
        made(pile, "retrieve.level=3", seeds=("seeds",))
    with pytest.raises(FovealError, match=r"dedup\.keep=best needs a quality .* set largest or first"):
        made(pile, "dedup.keep=best")
    assert not (pile / "set").exists() or not any((pile / "set").iterdir())


def test_a_pool_of_one_picture_says_that_too_few_are_left(pile: Path) -> None:
    (pile / "same").mkdir()
    for number in range(7):
        (pile / f"same/{number}.png").write_bytes((pile / "pool/0_0.png").read_bytes())
    settings = [f"model={pile / 'model'}", *SETTINGS]
    given = {"pool": str(pile / "same"), "out": str(pile / "set")}
    with pytest.raises(
        FovealError, match=r"target 3 is above the 1 images that are left \(1 after audit, 1 after dedup"
    ):
        curate(load_recipe("curate_small", settings, target=3, **given))
    with pytest.raises(FovealError, match=r"4 clusters for 1 images .*cluster\.levels=\[1\]"):
        curate(load_recipe("curate_small", settings, target=1, **given))
    with pytest.raises(FovealError, match="400 clusters for 7 images"):
        curate(load_recipe("curate_small", [*settings, "cluster.levels=[400]"], target=1, **given))


def test_wrong_recipes_are_refused_in_words() -> None:
    given = {"pool": "photos", "out": "set"}
    cases = {
        "unknown recipe key 'dedup.similarty'; did you mean 'dedup.similarity'": ["dedup.similarty=0.5"],
        "unknown recipe key 'modelx'; did you mean 'model'": ["modelx=x"],
        "needs a model; add model=": [],
        "seeds_as_is=true needs seeds": ["model=x", "seeds_as_is=true"],
        "dedup.neighbours": ["model=x", "dedup.neighbours=many"],
    }
    for text, overrides in cases.items():
        with pytest.raises(RecipeError, match=text):
            load_recipe("curate_small", overrides, **given)
    with pytest.raises(RecipeError, match="keep_out has no effect with dedup=null"):
        load_recipe("curate_small", ["model=x", "dedup=null"], keep_out=["eval"], **given)
    with pytest.raises(RecipeError, match="did you mean 'curate_small'"):
        load_recipe("curate_smal", ["model=x"], **given)


def test_places_of_a_recipe_are_absolute(pile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pile)
    (pile / "score.py").touch()
    (pile / "weights.pt").touch()
    settings = ["model=model", "copy_model=sscd:weights.pt", "scorer=score.py:score", "seeds=[seeds,eval]"]
    recipe = load_recipe("curate_small", [*settings, "keep_out=more"], pool="pool", out="set")
    assert (recipe.pool, recipe.out, recipe.model) == (f"{pile}/pool", f"{pile}/set", f"{pile}/model")
    assert (recipe.copy_model, recipe.scorer) == (f"sscd:{pile}/weights.pt", f"{pile}/score.py:score")
    assert (recipe.seeds, recipe.keep_out) == ((f"{pile}/seeds", f"{pile}/eval"), ("more",))
    recipe = load_recipe("curate_small", ["model=dinov2_vits14"], pool="*.tar", out="set")
    assert (recipe.pool, recipe.model) == ("*.tar", "dinov2_vits14")


@pytest.mark.parametrize(
    ("verb", "kind", "given"),
    [
        ("audit", AuditSettings, {}),
        ("dedup", DedupSettings, {}),
        ("cluster", ClusterSettings, {"levels": (7, 3)}),
        ("retrieve", RetrieveSettings, {}),
        ("sample", SampleSettings, {"target": 5}),
    ],
)
def test_every_setting_of_a_stage_is_an_option_of_its_verb(verb: str, kind: Any, given: dict[str, Any]) -> None:
    plain = kind(**given)
    for field in fields(plain):  # another value of its kind, or of its choice
        value = getattr(plain, field.name)
        if isinstance(value, tuple):
            value = (*value[:-1], value[-1] + 1)
        elif isinstance(value, str):
            value = get_args(get_type_hints(kind)[field.name])[-1]
        else:
            value = 7 if value is None else value * 0.5 if isinstance(value, float) else value + 1
        options = options_of(replace(plain, **{field.name: value}))
        known = {name for option in get_command(app).commands[verb].params for name in option.opts}  # type: ignore[attr-defined]
        assert set(options[::2]) <= known
        assert len(options) == 2 * len({field.name, *given})


def test_the_recipe_of_the_paper_has_its_numbers() -> None:
    assert recipe_names() == ["curate_small", "lvd142m"]
    recipe = load_recipe("lvd142m", ["model=x"], pool="photos", out="set", seeds=["seeds"])
    assert recipe.dedup is not None
    assert recipe.retrieve is not None
    assert recipe.cluster is not None
    assert (recipe.dedup.neighbours, recipe.dedup.similarity, recipe.dedup.keep_out_similarity) == (64, 0.6, 0.45)
    assert (recipe.retrieve.per_query, recipe.retrieve.per_cluster, recipe.retrieve.min_queries) == (4, 10_000, 3)
    assert (recipe.cluster.levels, recipe.retrieve.cap) == ((100_000,), 1_000_000)
    assert recipe.sample is None


def test_the_verb_says_what_happened(pile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seed", str(pile / "seeds"), "--target", "5", "--out", str(pile / "set")]
    command = ["curate", str(pile / "pool"), *options, f"model={pile / 'model'}", *SETTINGS]
    assert main(command) == 0
    printed = capsys.readouterr()
    flow = "28 after audit, 24 after dedup, 6 after retrieve, 5 after sample"
    assert f"wrote {pile / 'set'}: 5 images, of 30 in the pool ({flow})" in printed.out
    assert "note: nothing was kept out" in printed.err
    assert main([*command, "dedup.similarity=2"]) == 2
    assert json.loads((pile / "set/summary.json").read_text())["num_images"] == 5
