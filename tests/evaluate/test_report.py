import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from foveal.errors import FovealError
from foveal.evaluate.published import IMAGENET, published_value
from foveal.evaluate.report import Row, add_rows, newest_rows, read_rows, rows_of
from foveal.evaluate.results import Measure

ROW = Row("knn", "birds <1>", "knn-20 top-1", 81.234, "%", 79.0, 83.0, "tiny", "ab" * 32, "cd" * 32, "foveal evaluate")


def test_history_keeps_all_and_the_table_shows_the_newest(tmp_path: Path) -> None:
    other = replace(ROW, model="large", model_hash="ef" * 32, value=90.0)
    add_rows(tmp_path / "out", [ROW, other])
    page = add_rows(tmp_path / "out", [replace(ROW, value=82.5)])
    assert [row.value for row in read_rows(tmp_path / "out")] == [81.234, 90.0, 82.5]
    with (tmp_path / "out" / "results.csv").open() as file:
        assert [(row["model"], row["value"]) for row in csv.DictReader(file)] == [("tiny", "82.5"), ("large", "90.0")]
    html = page.read_text()
    assert "82.50 %" in html
    assert "81.23" not in html
    assert "79.00 to 83.00" in html
    assert "birds &lt;1&gt;" in html
    assert "http" not in html
    assert "published" not in html


def test_commands_that_end_at_the_same_time_all_keep_their_rows(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from foveal.evaluate.report import Row, add_rows\n"
        "for number in range(12): add_rows(Path(sys.argv[1]), [Row('knn', 'd', sys.argv[2] + str(number), 1.0, '%', "
        "1.0, 1.0, 'm', 'h', 'd', 'c')])"
    )
    commands = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name]) for name in ("a", "b")]
    assert [command.wait() for command in commands] == [0, 0]
    assert {row.metric for row in read_rows(tmp_path)} == {f"{name}{number}" for name in "ab" for number in range(12)}


def test_rows_of_other_data_stand_beside_each_other() -> None:
    other = replace(ROW, data_hash="00" * 32)
    assert newest_rows([ROW, other, ROW]) == [ROW, other]


def test_damaged_history_is_refused_and_kept(tmp_path: Path) -> None:
    add_rows(tmp_path, [ROW])
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text() + '{"protocol": "knn"}\n')
    with pytest.raises(FovealError, match=r"results.jsonl, line 2, is no row"):
        add_rows(tmp_path, [ROW])
    assert path.read_text().endswith('{"protocol": "knn"}\n')


def test_published_figures_stand_beside_the_same_model_and_data_only(tmp_path: Path) -> None:
    def published(model: str, data: str) -> float | None:
        measures = [Measure("knn-20 top-1", 79.1, "%", 78.8, 79.4)]
        rows = rows_of(
            measures, protocol="knn", data=data, data_hash="1", model=model, model_hash=model, command="foveal"
        )
        add_rows(tmp_path, rows)
        return rows[0].published

    assert published("dinov2_vits14_reg", IMAGENET) == 79.1
    assert published("dinov2_vitb14", IMAGENET) == 82.1
    assert published("tiny", IMAGENET) is None
    assert published("dinov2_vits14", "birds") is None
    assert "published 82.10" in (tmp_path / "results.html").read_text()


def test_published_figures_of_a_few_tables() -> None:
    def figure(size: str, *key: str) -> float | None:
        return published_value(
            model=f"dinov2_vit{size}14", **dict(zip(("protocol", "data", "metric"), key, strict=True))
        )

    assert figure("g", "linear", IMAGENET, "top-1") == 86.5
    assert figure("l", "retrieval", "revisited Oxford", "mAP hard") == 54.0
    assert figure("s", "depth", "NYUd", "lin.4 RMSE") == 0.417
    assert figure("b", "segment", "ADE20K", "ms mIoU") == 51.3
