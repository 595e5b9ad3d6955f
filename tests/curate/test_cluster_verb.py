"""`foveal cluster` and `foveal sample` as a user runs them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.cli.main import main
from foveal.curate.cluster import load_clusters
from foveal.images.imageset import ImageSet

MakeStore = Callable[..., Path]


@pytest.fixture
def store(make_store: MakeStore) -> Path:
    """40 vectors near one direction and 20 near the opposite one."""
    towards = np.repeat([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], [40, 20], axis=0)
    return make_store(towards + 0.3 * np.random.default_rng(0).normal(size=(60, 4)))


def test_images_are_clustered_and_sampled_evenly(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clusters, out = str(tmp_path / "clusters"), str(tmp_path / "sampled")
    assert main(["cluster", str(store), "--levels", "6,2", "--resampling", "1,0", "--out", clusters]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {clusters}: 60 images, mean cosine to the centroid 0.9" in printed
    assert "level 2: 2 clusters of 20 to 40 images, median 30, 0 empty" in printed
    assert main(["sample", clusters, "--target", "31", "--pick", "closest", "--out", out]) == 0
    assert f"wrote {out}: 31 images; removed 29: 29 balanced away" in capsys.readouterr().out
    found = ImageSet.open(tmp_path / "sampled")
    sizes = np.bincount(found.rows.column("cluster.2").to_numpy())
    assert sorted(sizes.tolist()) == [15, 16]


def test_a_finished_stage_is_not_done_again_and_other_settings_need_another_folder(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cluster", str(store), "--levels", "6,2", "--out", str(tmp_path / "clusters")]
    assert main(command) == 0
    begun = (tmp_path / "clusters/summary.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "clusters/summary.json").stat().st_mtime_ns == begun
    assert main([*command, "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err
    assert load_clusters(tmp_path / "clusters").stage.settings["seed"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "6,x"], "--levels 6,x; write whole numbers separated by commas"),
        (["--levels", "2,6"], "levels=[2, 6] of clusters; give falling numbers"),
        (["--levels", "61"], "61 clusters of 60 images; ask for fewer clusters, such as 6"),
        (["--levels", "6", "--memory", "0"], "memory_bytes=0 of clustering; choose 1 or more"),
        (["--levels", "6", "--tolerance", "-1"], "tolerance=-1.0 of clustering; choose 0 or more"),
    ],
)
def test_what_cannot_be_clustered_is_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["cluster", str(store), "--out", str(tmp_path / "clusters"), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "clusters").exists()


def test_vectors_that_are_no_numbers_are_refused_by_name(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 4))
    vectors[13, 2] = np.nan
    assert main(["cluster", str(make_store(vectors)), "--levels", "3", "--out", str(tmp_path / "clusters")]) == 2
    assert "0013.png" in capsys.readouterr().err


def test_more_than_there_is_cannot_be_sampled(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(store), "--levels", "6", "--out", str(tmp_path / "clusters")]) == 0
    assert main(["sample", str(tmp_path / "clusters"), "--target", "61", "--out", str(tmp_path / "sampled")]) == 2
    assert "target=61 images, and there are 60 to choose from" in " ".join(capsys.readouterr().err.split())
    assert main(["sample", str(store), "--target", "6", "--out", str(tmp_path / "sampled")]) == 2
