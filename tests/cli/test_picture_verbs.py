"""`foveal pca`, `attention`, `match` and `similar` as they are typed."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.cli.main import main
from foveal.cli.pictures import list_pictures, read_pictures
from foveal.errors import BadImageError, FovealError
from foveal.images.imageset import ImageSet


def _read(sources: list[str], *, max_images: int) -> Iterator[tuple[str, np.ndarray]]:
    return read_pictures(list_pictures(sources, max_images=max_images), channels=3)


@pytest.fixture
def cats(photos: Path) -> list[str]:
    return [str(path) for path in sorted((photos / "cat").iterdir())]


@pytest.fixture
def register_model(tmp_path: Path) -> Path:
    config = backbone_config("vit_nano", depth=2, num_registers=2, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    save_model(tmp_path / "registers", backbone, Card(name="tiny", backbone=config, crop_size=28, resize_size=32))
    return tmp_path / "registers"


def test_pca_of_pictures_of_any_shape(
    model_folder: Path, cats: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tall = tmp_path / "tall.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 40, 3), dtype=np.uint8)).save(tall)
    out = tmp_path / "pca.png"
    for fit in ("resize", "pad", "crop"):
        arguments = ["pca", cats[0], str(tall), "--model", str(model_folder), "--out", str(out), "--fit", fit]
        assert main([*arguments, "--size", "56", "--cell-size", "100"]) == 0
        with Image.open(out) as picture:
            assert picture.height == 16 + 2 * 100 + 4
        assert "2 images" in capsys.readouterr().out
    before = out.read_bytes()
    assert main([*arguments, "--size", "56", "--cell-size", "100"]) == 0
    assert out.read_bytes() == before
    assert main([*arguments, "--keep-background", "--out", str(tmp_path / "all.webp")]) == 0


def test_attention_draws_heads_and_registers(
    register_model: Path, cats: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "attention.png"
    arguments = ["attention", *cats[:2], "--model", str(register_model), "--out", str(out), "--cell-size", "43"]
    assert main(arguments) == 0
    with Image.open(out) as picture:  # 43 x 31 pictures are seen as 35 x 28: drawn 43 x 34
        assert picture.size == (2 * 43 + 4, 2 * (16 + 34) + 4)
    assert main([*arguments, "--heads", "--registers", "--layer", "0"]) == 0
    with Image.open(out) as picture:
        assert picture.width == (2 + 3 + 2) * 43 + 6 * 4  # vit_nano has three heads
    assert "2 images" in capsys.readouterr().out


def test_match_says_how_many(
    model_folder: Path, cats: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "match.png"
    arguments = ["match", cats[0], cats[0], "--model", str(model_folder), "--out", str(out), "--keep-background"]
    assert main([*arguments, "--nms", "0", "--max-matches", "7"]) == 0
    assert "7 of 20 mutual nearest patches" in capsys.readouterr().out  # 4 x 5 patches, each its own counterpart
    with Image.open(out) as picture:
        assert picture.size == (2 * 448 + 28, 16 + 358)


def test_match_without_common_foreground_says_what_to_try(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("dark", 0), ("light", 255)):
        Image.new("RGB", (28, 28), (value,) * 3).save(tmp_path / f"{name}.png")
    pair = [str(tmp_path / "dark.png"), str(tmp_path / "light.png")]
    out = str(tmp_path / "match.png")
    assert main(["match", *pair, "--model", str(model_folder), "--out", out]) == 0
    assert "0 of 0 mutual nearest patches; one picture has no foreground" in capsys.readouterr().out


def test_similar_lists_the_best_place_of_each_other_picture(
    model_folder: Path, cats: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "similar.png"
    arguments = ["similar", cats[0], "--point", "42,30", cats[0], cats[1], "--model", str(model_folder)]
    assert main([*arguments, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    name, value, place = lines[1].split("\t")
    assert (name, value) == (Path(cats[0]).name, "1.0000")
    assert place == "38,27"  # the centre of the last patch: (35 - 3.5) * 43 / 35 - .5, (28 - 3.5) * 31 / 28 - .5
    assert main(["similar", cats[0], "--point", "0,0", "--model", str(model_folder), "--out", str(out)]) == 0


@pytest.mark.parametrize("verb", ["pca", "attention", "match", "similar"])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--out", "x.tiff"], "cannot write '.tiff'; choose a name with .png"),
        (["--out", "no/where/x.png"], "no/where does not exist"),
        (["--out", "run"], "run is a folder; give the name of a file"),
        (["--fit", "rezise"], "'rezise' is not one of 'crop', 'resize', 'pad'; did you mean 'resize'?; see foveal"),
        (["--size", "1000000"], "size 1000000 makes 20,408"),
        (["--num-heads", "16"], "num_heads=16, and the card of"),
        (["--size", "30", "--fit", "crop"], "size 30: 30 is not a multiple of the patch size 7; use 28 or 35"),
        (["--size", "0"], "--size"),
    ],
)
def test_what_cannot_be_drawn_is_explained(
    model_folder: Path,
    cats: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    extra: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    point = ["--point", "1,1"] if verb == "similar" else []
    assert main([verb, *cats[:2], *point, "--model", str(model_folder), *extra]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "{cat}", "--registers"], "this model has no registers; leave"),
        (["attention", "{cat}", "--layer", "1"], "layer=1 of a backbone with 1 blocks; choose 0..0"),
        (["attention", "no/where.jpg"], "no/where.jpg does not exist; give image files, patterns"),
        (["match", "{cat}", "no/where.jpg"], "does not exist"),
        (["similar", "{cat}", "--point", "1,1", "--max-images", "3"], "--max-images has no effect without OTHERS"),
        (["match", "{cat}", "{folder}"], "is a directory"),
        (["match", "{cat}", "{bad}"], "bad.png: "),
        (["match", "{cat}", "{cat}", "--max-matches", "0"], "--max-matches"),
        (["similar", "{cat}"], "--point"),
        (["similar", "{cat}", "--point", "3"], "--point 3: give two numbers, X,Y"),
        (["similar", "{cat}", "--point", "a,b"], "--point a,b: give two numbers"),
        (["similar", "{cat}", "--point", "43,0"], "43,0 is outside the picture of 43 x 31 pixels; choose X in 0..42"),
        (["similar", "{cat}", "--point", "-1,0"], "-1,0 is outside the picture"),
        (["similar", "{cat}", "--point", "1,1", "--fit", "crop"], "is cut away before the model sees it"),
        (["pca", "{folder}/*.jpg"], "*.jpg matches no file; check its folder and its ending"),
    ],
)
def test_wrong_arguments_are_explained(
    model_folder: Path,
    photos: Path,
    cats: list[str],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"nothing")
    filled = [part.format(cat=cats[0], folder=photos, bad=tmp_path / "bad.png") for part in arguments]
    assert main([*filled, "--model", str(model_folder)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.glob("*.png")] == ["bad.png"]


def test_pictures_come_from_files_folders_patterns_shards_and_sets(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted((photos / "dog").iterdir()):
            tar.add(path, path.name)
    ImageSet.open(photos / "cat").save(tmp_path / "set")
    sources = {
        str(photos / "cat" / "1.png"): 1,
        str(photos): 24,
        f"{photos}/*/1*.png": 11,
        f"{photos}/**/2.png": 1,
        str(tmp_path / "shard.tar"): 12,
        f"{tmp_path}/*.tar": 12,
        str(tmp_path / "set"): 12,
    }
    for source, count in sources.items():
        found = list(_read([source], max_images=99))
        assert len(found) == count, source
        assert all(pixels.shape == (31, 43, 3) for _, pixels in found)
    assert [name for name, _ in _read([str(photos / "dog"), str(photos / "cat" / "1.png")], max_images=99)][-2:] == [
        "8.png",
        "1.png",
    ]


def test_of_too_many_some_are_shown_and_it_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = [name for name, _ in _read([str(photos)], max_images=24)]
    assert capsys.readouterr().err == ""
    some = [name for name, _ in _read([str(photos)], max_images=3)]
    assert some == [everything[0], everything[12], everything[23]]
    assert "24 images; 3 of them, evenly spread, are shown (--max-images)" in capsys.readouterr().err
    assert [name for name, _ in _read([str(photos)], max_images=1)] == everything[:1]


def test_bad_pictures_stop_when_named_and_are_skipped_in_sets(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = photos / "cat" / "1.png"
    bad.write_bytes(b"nothing")
    with pytest.raises(BadImageError, match=r"cat/1\.png: "):
        list(_read([str(bad)], max_images=9))
    assert len(list(_read([str(photos / "cat")], max_images=99))) == 11
    assert "skipped: 1.png: " in caplog.text
    for path in (photos / "cat").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(FovealError, match=r"none of the 12 images of .* can be read; check the source"):
        list(_read([str(photos / "cat")], max_images=99))


def test_pictures_too_large_for_their_format_are_explained(tmp_path: Path) -> None:
    from foveal.cli.pictures import write_picture

    with pytest.raises(FovealError, match=r"70000 x 1 pixels cannot be written as \.jpg .* choose \.png, or fewer"):
        write_picture(tmp_path / "x.jpg", Image.new("RGB", (70_000, 1)))
    assert not list(tmp_path.iterdir())


def test_verbs_show_the_first_bands_to_a_model_of_eight(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")
    config = backbone_config("vit_nano", depth=2, channels=8, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    card = Card(name="x", backbone=config, mean=[0.5] * 8, std=[0.25] * 8, crop_size=28, resize_size=32)
    save_model(tmp_path / "model", backbone, card)
    (tmp_path / "tiles").mkdir()
    pixels = np.random.default_rng(0).integers(0, 65536, (28, 35, 8), dtype=np.uint16)
    for number in range(2):
        path = tmp_path / "tiles" / f"{number}.tif"
        tifffile.imwrite(path, pixels[number:], photometric="minisblack", planarconfig="contig")
    tile, model, out = str(tmp_path / "tiles" / "0.tif"), ["--model", str(tmp_path / "model")], tmp_path / "x.png"
    for arguments in (["pca", str(tmp_path / "tiles")], ["match", tile, tile], ["similar", tile, "--point=3,3", tile]):
        assert main([*arguments, *model, "--out", str(out)]) == 0
    assert main(["attention", tile, *model, "--out", str(out), "--cell-size", "35"]) == 0
    expected = np.rint(pixels[:, :, :3] / 257)
    np.testing.assert_allclose(np.asarray(Image.open(out))[16:44, :35], expected, atol=1)
    store = str(tmp_path / "store")
    assert main(["extract", str(tmp_path / "tiles"), *model, "--out", store]) == 0
    assert main(["search", store, tile, "row:0", *model, "-k", "1", "--png", str(out)]) == 0
