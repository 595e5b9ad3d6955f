"""The short form of soak_annotate.py."""

import re
from pathlib import Path

from soak_annotate import soak


def test_nothing_that_was_answered_is_lost_by_kills(tmp_path: Path, model: Path, pictures: Path) -> None:
    said = soak(tmp_path, model, pictures, seconds=40, seed=0)
    changes, _, kills, again = map(int, re.findall(r"\d+", said))
    assert min(changes, kills) >= 3, said
    assert again > 0, said
