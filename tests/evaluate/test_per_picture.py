from pathlib import Path

import numpy as np
import pytest

from foveal.errors import FovealError, WeightsError
from foveal.evaluate.per_picture import rows_of_pictures


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    state, seen = tmp_path / "measured.safetensors", []

    def row_of(index: int) -> np.ndarray:
        seen.append(index)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return np.array([index, 10 * index])

    with pytest.raises(KeyboardInterrupt):
        rows_of_pictures(5, row_of, state=state, stamp="one")
    done: list[tuple[int, int]] = []
    rows = rows_of_pictures(5, row_of, state=state, stamp="one", progress=lambda *step: done.append(step))
    assert seen == [0, 1, 2, 3, 3, 4]
    assert done == [(4, 5), (5, 5)]
    assert rows.tolist() == [[0, 0], [1, 10], [2, 20], [3, 30], [4, 40]]


def test_a_state_of_another_measurement_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    state = tmp_path / "measured.safetensors"
    rows_of_pictures(2, lambda index: np.array([index]), state=state, stamp="one")
    with pytest.raises(FovealError, match="is the state of a measurement with another model, data or settings"):
        rows_of_pictures(2, lambda index: np.array([index]), state=state, stamp="two")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"measured.safetensors"):
        rows_of_pictures(2, lambda index: np.array([index]), state=state, stamp="one")
