import sys
from pathlib import Path

import pytest

from foveal.cli.terminal import check_file_target, print_measures, progress_of, write_file
from foveal.errors import FovealError
from foveal.evaluate.results import Measure

ROWS = [Measure("knn-20 [top-1]", 81.2345, "%", 79, 83.5)]


def test_rows_are_plain_lines_away_from_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_measures(ROWS, title="kNN")
    assert capsys.readouterr().out == "knn-20 [top-1]\t81.23\t%\t79.00 to 83.50\n"


def test_rows_are_a_table_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_measures(ROWS, title="kNN [of] x")
    out = capsys.readouterr().out
    assert "knn-20 [top-1]" in out
    assert "kNN [of] x" in out
    assert "81.23" in out
    assert "79.00 to 83.50" in out


def test_progress_is_a_line_every_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_of("extracting", every_s=0) as progress:
        progress(3, 7)
    assert capsys.readouterr().err == "extracting: 3/7\n"
    with progress_of("extracting", every_s=3600) as progress:
        progress(3, 7)
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_of("extracting") as progress:
        progress(7, 7)
    captured = capsys.readouterr()
    assert "extracting" in captured.err
    assert captured.out == ""


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = check_file_target(tmp_path / "x.json")
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(FovealError, match="cannot be written"):
        write_file(tmp_path / "x.json" / "y", b"")
    with pytest.raises(FovealError, match="is a folder"):
        check_file_target(tmp_path)
