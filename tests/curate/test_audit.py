import importlib.util
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from disks import no_file_above
from PIL import Image
from skimage import data

from foveal.cli.main import main
from foveal.curate.audit import AuditSettings, run_audit
from foveal.curate.runner import Runner
from foveal.curate.stage import REMOVED
from foveal.errors import FovealError, ImageSetError
from foveal.files import sha256_of
from foveal.images.decode import decode
from foveal.images.imageset import ImageSet

SMALL = AuditSettings(shard_size=3)


def pixels(number: int, height: int = 37, width: int = 53) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def written(folder: Path, files: dict[str, bytes]) -> ImageSet:
    folder.mkdir(exist_ok=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return ImageSet.open(folder)


@pytest.fixture
def noise(tmp_path: Path) -> ImageSet:
    """Eight pictures, of which the sixth is a copy of the second."""
    return written(tmp_path / "noise", {f"{n}.png": encoded(pixels(1 if n == 5 else n)) for n in range(8)})


def test_each_image_is_removed_for_what_is_wrong_with_it(tmp_path: Path) -> None:
    photograph = encoded(data.astronaut(), "JPEG", quality=80)
    dust = np.full((64, 64, 3), 200, np.uint8)
    dust[3, 3] = 190
    expected = {
        "a_good.jpg": "",
        "b_copy.jpg": "duplicate",
        "cut.jpg": "truncated",
        "dust.png": "blank",
        "edge_aspect.png": "",
        "edge_side.png": "",
        "empty.png": "empty",
        "glass.png": "blank",
        "long.png": "extreme_aspect",
        "page.jpg": "unknown_format",
        "thin.png": "tiny",
        "wide.png": "too_many_pixels",
    }
    files = {
        "a_good.jpg": photograph,
        "b_copy.jpg": photograph,
        "cut.jpg": photograph[: len(photograph) // 2],
        "dust.png": encoded(dust),
        "edge_aspect.png": encoded(pixels(1, 32, 160)),
        "edge_side.png": encoded(pixels(2, 32, 32)),
        "empty.png": b"",
        "glass.png": encoded(np.dstack([pixels(3), np.zeros((37, 53), np.uint8)])),
        "long.png": encoded(pixels(4, 161, 32)),
        "page.jpg": b"<html>not found</html>",
        "thin.png": encoded(pixels(5, 31, 90)),
        "wide.png": encoded(np.zeros((600, 500, 3), np.uint8)),
    }
    images = written(tmp_path / "pool", files)
    stage = run_audit(images, out=tmp_path / "out", settings=replace(SMALL, max_pixels=512 * 512))
    kept = stage.images().rows.to_pylist()
    removed = {row["uri"]: row for row in stage.removed().to_pylist()}
    found = {row["uri"]: "" for row in kept} | {uri: row["reason"] for uri, row in removed.items()}
    assert found == expected
    assert (removed["b_copy.jpg"]["kept_uri"], removed["b_copy.jpg"]["score"]) == ("a_good.jpg", 0.0)
    assert "161 pixels, 5.0 to 1; allowed is 5 to 1" in removed["long.png"]["detail"]
    assert [(row["width"], row["height"]) for row in kept] == [(512, 512), (160, 32), (32, 32)]
    assert kept[0]["sha256"] == sha256_of(tmp_path / "pool/a_good.jpg")
    summary = stage.summary or {}
    assert summary["num_bytes"] == sum(row["bytes"] for row in kept)
    assert summary["width"] == {"min": 32, "median": 160.0, "max": 512}
    assert stage.images().decode(1).shape == (32, 160, 3)


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_cut_is_seen_in_a_decode_at_an_eighth(progressive: int) -> None:
    whole = encoded(data.astronaut(), "JPEG", quality=80, progressive=progressive)
    assert decode(whole, min_short_side=64).shape == (64, 64, 3)
    for length in np.linspace(800, len(whole) - 1, 25).astype(int).tolist():
        with pytest.raises(FovealError, match=r"truncated|ends before"):
            decode(whole[:length], min_short_side=64)


def contents(folder: Path) -> dict[str, bytes]:
    found = {path for path in folder.rglob("*") if path.is_file() and path.name != "stage.json"}
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_two_workers_and_an_interruption_give_the_same_bytes(tmp_path: Path, noise: ImageSet) -> None:
    has_hashes = importlib.util.find_spec("pdqhash") is not None
    settings = replace(SMALL, max_distance=3 if has_hashes else None)
    run_audit(noise, out=tmp_path / "one", settings=settings)
    run_audit(noise, out=tmp_path / "two", settings=settings, runner=Runner(num_workers=2))

    class Killed(Exception):
        pass

    def die(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        run_audit(noise, out=tmp_path / "cut", settings=settings, progress=die)
    assert not (tmp_path / "cut" / REMOVED).exists()
    seen: list[tuple[int, int]] = []
    run_audit(noise, out=tmp_path / "cut", settings=settings, progress=lambda *both: seen.append(both))
    assert seen == [(3, 3)]
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "cut")
    num_steps = 3 + (1 + 8 if has_hashes else 0)  # shards of images; the hashes, and links of 8 pieces
    assert len(contents(tmp_path / "one")) == num_steps + 6  # source and set of two files each, removed, summary


def test_images_that_change_are_named(tmp_path: Path, noise: ImageSet) -> None:
    def change(done: int, total: int) -> None:
        if done == 1:
            (tmp_path / "noise/1.png").write_bytes(encoded(pixels(1)[::-1]).ljust(len(noise.read(1)), b"\0"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(noise, out=tmp_path / "out", settings=SMALL, progress=change)
    with pytest.raises(
        ImageSetError, match=r"changed since they were audited: 1\.png; restore them, or remove .*00000"
    ):
        run_audit(noise, out=tmp_path / "out", settings=SMALL)
    (tmp_path / "out/shards/images/00000.safetensors").unlink()
    (tmp_path / "noise/7.png").write_bytes(b"cut")
    with pytest.raises(ImageSetError, match=r"7\.png has changed: its bytes is 3"):
        run_audit(noise, out=tmp_path / "out", settings=SMALL)
    with pytest.raises(FovealError, match="made with other settings or inputs: images is"):
        run_audit(ImageSet.open(tmp_path / "noise"), out=tmp_path / "out", settings=SMALL)


def test_an_image_that_can_be_read_again_is_audited_again(tmp_path: Path, noise: ImageSet) -> None:
    hidden, shown = tmp_path / "hidden.png", tmp_path / "noise/2.png"
    shown.rename(hidden)
    stage = run_audit(noise, out=tmp_path / "out", settings=SMALL)
    assert (stage.summary or {})["by_reason"] == {"duplicate": 1, "unreadable": 1}
    (tmp_path / "out/summary.json").unlink()
    hidden.rename(shown)
    seen: list[tuple[int, int]] = []
    again = run_audit(noise, out=tmp_path / "out", settings=SMALL, progress=lambda *both: seen.append(both))
    assert (again.summary or {})["by_reason"] == {"duplicate": 1}
    assert seen == [(3, 3)]


def test_a_set_of_no_use_is_refused(tmp_path: Path, noise: ImageSet) -> None:
    with pytest.raises(FovealError, match="the set has no images"):
        run_audit(noise.subset([]), out=tmp_path / "empty")
    with pytest.raises(FovealError, match=r"none of the 8 images is kept; the first is tiny: 53 x 37 pixels"):
        run_audit(noise, out=tmp_path / "none", settings=AuditSettings(min_side=100))


def test_a_full_disk_and_a_damaged_shard_leave_what_is_finished(tmp_path: Path, noise: ImageSet) -> None:
    out = tmp_path / "out"
    run_audit(noise, out=out, settings=SMALL)
    whole = contents(out)
    (out / "summary.json").unlink()
    shard = out / "shards/images/00001.safetensors"
    shard.unlink()
    with no_file_above(600), pytest.raises(FovealError, match=r"cannot be written .* free space and run the same"):
        run_audit(noise, out=out, settings=SMALL)
    shard.write_bytes(b"damaged")
    with pytest.raises(FovealError, match=r"00001\.safetensors is damaged"):
        run_audit(noise, out=out, settings=SMALL)
    shard.unlink()
    run_audit(noise, out=out, settings=SMALL)
    assert contents(out) == whole


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_side": 0}, "min_side=0; it must be at least 1"),
        ({"max_aspect": 0.5}, "max_aspect=0.5; it must be at least 1"),
        ({"max_aspect": float("nan")}, "max_aspect=nan"),
        ({"max_score": 1.5}, "max_score=1.5; scores are numbers from 0 to 1"),
        ({"max_distance": 32}, "max_distance=32; choose 0 to 31 of 256 bits"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(FovealError, match=words):
        AuditSettings(**settings)


def test_near_copies_go_and_the_largest_stays(tmp_path: Path) -> None:
    pytest.importorskip("pdqhash", reason="the extra curate is not installed")
    cat, cup = Image.fromarray(data.chelsea()), Image.fromarray(data.coffee())
    files = {
        "a_cat_small.jpg": encoded(np.asarray(cat.resize((200, 133))), "JPEG", quality=60),
        "b_cat.png": encoded(np.asarray(cat)),
        "c_cat_grey.png": encoded(np.asarray(cat.convert("L").convert("RGB"))),
        "d_cup.jpg": encoded(np.asarray(cup), "JPEG"),
        "a_cat_small_too.jpg": encoded(np.asarray(cat.resize((200, 133))), "JPEG", quality=60),
        "e_cup_again.png": encoded(decode(encoded(np.asarray(cup), "JPEG"))),
        "f_slope.png": encoded(np.tile(np.arange(0, 250, dtype=np.uint8)[:, None, None], (1, 250, 3))),
        "g_slope.jpg": encoded(np.tile(np.arange(0, 250, dtype=np.uint8)[:, None, None], (1, 250, 3)), "JPEG"),
    }
    images = written(tmp_path / "pool", files)
    settings = AuditSettings(shard_size=2, max_distance=10)
    stage = run_audit(images, out=tmp_path / "out", settings=settings)
    removed = {row["uri"]: (row["reason"], row["kept_uri"]) for row in stage.removed().to_pylist()}
    assert removed == {
        "a_cat_small.jpg": ("near_duplicate", "b_cat.png"),
        "a_cat_small_too.jpg": ("duplicate", "b_cat.png"),
        "c_cat_grey.png": ("near_duplicate", "b_cat.png"),
        "e_cup_again.png": ("near_duplicate", "d_cup.jpg"),
    }
    score, same_score, _, cup_score = stage.removed().column("score").to_pylist()
    assert score == same_score > cup_score == 0
    assert all(len(code) == 64 for code in stage.images().rows.column("phash").to_pylist())


def test_links_of_images_that_were_audited_again_are_not_kept(tmp_path: Path) -> None:
    pytest.importorskip("pdqhash", reason="the extra curate is not installed")
    names = ("astronaut", "chelsea", "coffee")
    files = {f"{n}.png": encoded(np.asarray(Image.fromarray(getattr(data, n)()).resize((99, 99)))) for n in names}
    images = written(tmp_path / "pool", {**files, "z.png": encoded(decode(files["coffee.png"])[::-1])})
    settings = AuditSettings(shard_size=2, max_distance=10)
    stage = run_audit(images, out=tmp_path / "out", settings=settings)
    assert (stage.summary or {})["num_removed"] == 0
    (tmp_path / "out/summary.json").unlink()
    other = stage.load("images", 1) | {"code": np.repeat(stage.load("images", 1)["code"][:1], 2, axis=0)}
    stage.save("images", 1, other)
    assert run_audit(images, out=tmp_path / "out", settings=settings).removed().column("uri").to_pylist() == ["z.png"]


def test_the_verb_says_what_it_did_and_what_is_wrong(
    tmp_path: Path, noise: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["audit", str(tmp_path / "noise"), "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}: 7 images; removed 1: 1 duplicate\n"
    wrong = {
        ("--min-side", "48"): "min_side is 32 there and 48 now",
        ("--min-side", "0"): "min_side=0",
        ("--max-score", "0.1"): "--max-score has no effect without --scorer",
        ("--urls", "x.csv"): "--urls has no effect without --block-list",
        ("--block-list", "none.txt"): "none.txt cannot be read",
        ("--scorer", "nothing"): "names no function",
    }
    for options, words in wrong.items():
        assert main([*arguments, *options]) == 2
        assert words in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "noise"), "--out", str(tmp_path / "noise/out")]) == 2
    assert "which is searched for images" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "absent"), "--out", str(tmp_path / "x")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_audited_set_is_audited_again(tmp_path: Path, noise: ImageSet) -> None:
    first = run_audit(noise, out=tmp_path / "one").images()
    again = run_audit(ImageSet.open(tmp_path / "one"), out=tmp_path / "two").images()
    assert again.rows.equals(first.rows)


Write = Callable[[str], str]


@pytest.fixture
def plugin(tmp_path: Path) -> Write:
    """Give a function that writes a file of Python and returns FILE.py:judge."""

    def write(text: str) -> str:
        (tmp_path / "judges.py").write_text(text)
        return f"{tmp_path / 'judges.py'}:judge"

    return write


def test_a_scorer_removes_what_it_scores_above_the_limit(tmp_path: Path, noise: ImageSet, plugin: Write) -> None:
    scorer = plugin("def judge(image):\n    assert image.shape == (37, 53, 3)\n    return image[0, 0, 0] / 255\n")
    stage = run_audit(noise, out=tmp_path / "out", settings=replace(SMALL, max_score=0.4), scorer=scorer)
    expected = {f"{n}.png": pixels(1 if n == 5 else n)[0, 0, 0] / 255 for n in range(8)}
    kept = {row["uri"]: row["score"] for row in stage.images().rows.to_pylist()}
    scored = {row["uri"]: row["score"] for row in stage.removed().to_pylist() if row["reason"] == "scored"}
    assert kept == {uri: value for uri, value in expected.items() if value <= 0.4 and uri != "5.png"}
    assert scored == {uri: value for uri, value in expected.items() if value > 0.4}
    plugin("def judge(image):\n    return 0.0\n")
    with pytest.raises(FovealError, match="made with other settings or inputs: scorer is"):
        run_audit(noise, out=tmp_path / "out", settings=replace(SMALL, max_score=0.4), scorer=scorer)


def test_a_transform_writes_what_it_changes_and_nothing_else(tmp_path: Path, noise: ImageSet, plugin: Write) -> None:
    transform = plugin(
        "def judge(image):\n    if image[0, 0, 0] < 99:\n        return None\n"
        "    image[:] = image.mean()\n    return image\n"
    )
    stage = run_audit(noise, out=tmp_path / "out", settings=SMALL, transform=transform)
    before = {path.name: path.read_bytes() for path in (tmp_path / "noise").iterdir()}
    kept = stage.images()
    changed = 0
    for row, facts in enumerate(kept.rows.to_pylist()):
        original = decode(before[facts["original_uri"]])
        if original[0, 0, 0] < 99:
            assert facts["uri"] == facts["original_uri"]
            assert np.array_equal(kept.decode(row), original)
        else:
            changed += 1
            assert facts["uri"].startswith("../out/images/0000")
            assert np.abs(kept.decode(row) - original.mean()).max() <= 2
            assert facts["sha256"] == sha256_of(kept.root / facts["uri"])
            assert facts["bytes"] == (kept.root / facts["uri"]).stat().st_size
    assert (stage.summary or {})["num_changed"] == changed > 0


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("def judge(image):\n    return 1.5\n", "scorer", "gave 1.5 for 0.png; a score is a number from 0 to 1"),
        ("def judge(image):\n    return float('nan')\n", "scorer", "a score is a number"),
        ("def judge(image):\n    return 'x'\n", "scorer", "gave 'x' for 0.png"),
        ("def judge(image):\n    raise KeyError('weights')\n", "scorer", "failed for 0.png .KeyError: 'weights'"),
        ("def judge(image):\n    return image[0]\n", "transform", r"gave uint8 of shape \(53, 3\) for 0.png"),
        ("def other(image):\n    return 1\n", "scorer", "has no function 'judge'; it has other"),
        ("def judge(:\n", "transform", "cannot be imported .SyntaxError"),
    ],
)
def test_a_wrong_plugin_is_named(
    tmp_path: Path, noise: ImageSet, plugin: Write, text: str, kind: str, words: str
) -> None:
    with pytest.raises(FovealError, match=words):
        run_audit(noise, out=tmp_path / "out", settings=SMALL, **{kind: plugin(text)})


def test_blocked_images_are_removed_unread(tmp_path: Path, noise: ImageSet) -> None:
    urls = [f"https://{'bad' if n % 2 else 'good'}.example.com/{n}.png" for n in range(8)]
    images = ImageSet(noise.rows.append_column("url", pa.array(urls)), root=noise.root)
    (tmp_path / "noise/1.png").unlink()
    (tmp_path / "list.txt").write_text("# unsafe\nbad.example.com\n")
    with pytest.raises(FovealError, match="no image of the set has an address"):
        run_audit(noise, out=tmp_path / "out", settings=SMALL, block_list=tmp_path / "list.txt")
    stage = run_audit(images, out=tmp_path / "out", settings=SMALL, block_list=tmp_path / "list.txt")
    assert [row["reason"] for row in stage.removed().to_pylist()] == ["blocked_url"] * 4
    assert stage.removed().column("detail")[0].as_py() == f"{urls[1]} is blocked by bad.example.com"
    (tmp_path / "list.txt").write_text("other.example.com\n")
    with pytest.raises(FovealError, match="other settings or inputs: block_list"):
        run_audit(images, out=tmp_path / "out", settings=SMALL, block_list=tmp_path / "list.txt")


def test_urls_come_from_a_table(tmp_path: Path, noise: ImageSet, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "urls.csv").write_text("uri,url\n3.png,http://a.example.com/3\n0.png,http://b.example.org/0\n")
    (tmp_path / "list.txt").write_text("example.com\n")
    given = ["--block-list", str(tmp_path / "list.txt"), "--urls", str(tmp_path / "urls.csv")]
    assert main(["audit", str(tmp_path / "noise"), "--out", str(tmp_path / "out"), *given]) == 0
    assert "removed 2: 1 blocked_url, 1 duplicate" in capsys.readouterr().out
    kept = ImageSet.open(tmp_path / "out").rows.to_pylist()
    assert {row["uri"]: row["url"] for row in kept if row["url"]} == {"0.png": "http://b.example.org/0"}
    for text, words in {"uri\n1.png\n": "missing are url", "uri,url\nx,y\n": "names no image of the set"}.items():
        (tmp_path / "urls.csv").write_text(text)
        assert main(["audit", str(tmp_path / "noise"), "--out", str(tmp_path / "out"), *given]) == 2
        assert words in capsys.readouterr().err


def test_the_corrupt_file_of_copydet_is_found(tmp_path: Path, real_images: Path) -> None:
    paths = sorted((real_images / "copydet").rglob("mixed_images/*.jpg"))
    images = ImageSet.of_files(real_images, [str(path.relative_to(real_images)) for path in paths])
    stage = run_audit(images, out=tmp_path / "out")
    (removed,) = stage.removed().to_pylist()
    assert removed["uri"].endswith("_corrupt.jpg")


def test_the_judges_of_the_documentation_work(tmp_path: Path, noise: ImageSet) -> None:
    page = (Path(__file__).parents[2] / "docs/curate.md").read_text()
    (example,) = re.findall(r'^```python\n("""judges\.py""".*?)^```$', page, re.MULTILINE | re.DOTALL)
    judges = tmp_path / "judges.py"
    judges.write_text(example)
    written(tmp_path / "noise", {"grey.png": encoded(np.repeat(pixels(9)[:, :, :1], 3, axis=2))})
    stage = run_audit(
        ImageSet.open(tmp_path / "noise"),
        out=tmp_path / "out",
        settings=AuditSettings(max_score=0.98),
        scorer=f"{judges}:greyness",
        transform=f"{judges}:cover_centre",
    )
    assert [row["uri"] for row in stage.removed().to_pylist() if row["reason"] == "scored"] == ["grey.png"]
    assert stage.images().decode(0)[14:23, 20:33].max() <= 20
