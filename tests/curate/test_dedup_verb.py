from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.cli.main import main
from foveal.images.imageset import ImageSet

MakeStore = Callable[..., Path]


def test_dedup_keeps_one_of_a_group_and_says_what_went(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, keep_out = make_store(np.eye(4, 5)[[0, 1, 1, 2, 3]]), make_store(np.eye(4, 5)[3:], "eval")
    out = tmp_path / "out"
    command = ["dedup", str(pool), "--keep-out", str(keep_out), "--keep", "first", "--out", str(out)]
    for _ in range(2):
        assert main(command) == 0
        assert capsys.readouterr().out == f"wrote {out}: 3 images; removed 2: 1 duplicate, 1 keep-out\n"
    assert ImageSet.open(out).rows.column("uri").to_pylist() == ["0000.png", "0001.png", "0003.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--similarity", "1.5"], "similarity=1.5; a cosine, choose from 0.05 to 1"),
        (["--keep", "best"], "keep='best' needs images with a quality"),
        (["--keep", "biggest"], "'biggest' is not one of 'largest', 'first', 'best'"),
        (["--token", "mean"], "token 'mean' cannot be searched"),
        (["--memory", "0.000001"], "allow more memory or choose a smaller shard size"),
        (["--workers", "2", "--engine", "ray"], "--workers 2 has no effect with --engine ray"),
    ],
)
def test_dedup_explains_what_does_not_work(
    make_store: MakeStore, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dedup", str(make_store(np.eye(3))), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
