import csv
from pathlib import Path

import numpy as np
import pytest

from foveal.errors import FovealError
from foveal.evaluate.confusion import Confusion, read_confusions, write_confusion
from foveal.evaluate.report import Row, add_rows

ROW = Row("segment", "street", "linear mIoU", 50.0, "%", 40.0, 60.0, "tiny", "ab" * 32, "cd" * 32, "foveal evaluate")
MATRIX = Confusion(
    "segment, linear, street", ["road, wet", "sky", "nowhere"], np.array([[3, 1, 0], [0, 5, 0], [0] * 3])
)


def test_a_matrix_is_read_back_and_shown_on_the_page(tmp_path: Path) -> None:
    path = write_confusion(tmp_path, MATRIX)
    assert path.name == "segment-linear-street.csv"
    with path.open() as file:
        assert list(csv.reader(file))[1] == ["road, wet", "3", "1", "0"]
    (found,) = read_confusions(tmp_path)
    assert (found.title, found.classes, found.counts.tolist()) == (MATRIX.title, MATRIX.classes, MATRIX.counts.tolist())
    assert found.lines == [
        ("road, wet", [("75.0", 0.75), ("25.0", 0.25), ("", 0)]),
        ("sky", [("", 0), ("100.0", 1), ("", 0)]),
    ]
    page = add_rows(tmp_path, [ROW]).read_text()
    assert "75.0" in page
    assert 'href="confusion/segment-linear-street.csv"' in page


def test_a_file_that_is_no_matrix_is_named(tmp_path: Path) -> None:
    write_confusion(tmp_path, MATRIX).write_text("a,b\nb,x\n")
    with pytest.raises(FovealError, match=r"segment-linear-street.csv is no confusion matrix"):
        read_confusions(tmp_path)
