import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from foveal.backbone.plain_pickle import read_plain_pickle
from foveal.errors import FovealError


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    shared = ["a", "é"]
    content = {
        "names": [shared, shared],
        "numbers": [0, 1, -1, 300, 70_000, 2**40, -(2**70), 0.5, True, False, None],
        "ints": np.arange(6).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "wide": np.array([1, 2], dtype=">i4"),
        "scalar": np.float64(2.5),
        "empty": np.empty(0, np.int64),
        "bytes": b"\x00\xff",
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "nested": {1: {}, "x": []},
    }
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    expected = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in content.items()}
    assert read_plain_pickle(tmp_path / "data.pkl") == expected


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    text = b"(dp0\nS'names'\np1\n(lp2\nS'all_souls'\np3\nasS'bbx'\np4\n(lp5\nF136.5\naI34\nas."
    (tmp_path / "old.pkl").write_bytes(text)
    assert read_plain_pickle(tmp_path / "old.pkl") == {"names": ["all_souls"], "bbx": [136.5, 34]}


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "named"), [(Harmful(), "builtins.print"), (OrderedDict(a=1), "collections.OrderedDict")]
)
def test_any_other_name_is_refused_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, named: str
) -> None:
    (tmp_path / "data.pkl").write_bytes(pickle.dumps([content]))
    with pytest.raises(FovealError, match=f"asks for {named}, which is no plain data"):
        read_plain_pickle(tmp_path / "data.pkl")
    assert capsys.readouterr().out == ""


def test_arrays_of_objects_and_forged_sizes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(np.array([{}], dtype=object)))
    with pytest.raises(FovealError, match="arrays of type O8"):
        read_plain_pickle(path)
    path.write_bytes(pickle.dumps(np.arange(8), protocol=2).replace(b"K\x08\x85", b"K\x09\x85"))
    with pytest.raises(FovealError, match=r"shape \(9,\) with 64 bytes"):
        read_plain_pickle(path)


def test_a_call_of_data_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(b"\x80\x02]q\x00)R.")
    assert [op.name for op, _, _ in pickletools.genops(path.read_bytes())][-2:] == ["REDUCE", "STOP"]
    with pytest.raises(FovealError, match="call of something that is no function"):
        read_plain_pickle(path)
    whole = pickle.dumps({"a": list(range(50))})
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(FovealError, match="damaged or no pickle"):
            read_plain_pickle(path)
    with pytest.raises(FovealError, match="cannot be read"):
        read_plain_pickle(tmp_path / "none.pkl")


def test_keys_that_take_for_ever_to_hash_are_refused(tmp_path: Path) -> None:
    nested: tuple[object, ...] = ()
    for _ in range(60):
        nested = (nested, nested)
    head = pickle.dumps(nested, protocol=2)[:-1]
    (tmp_path / "data.pkl").write_bytes(b"\x80\x02}" + head[2:] + b"Ns.")
    with pytest.raises(FovealError, match="a key that is neither text nor number"):
        read_plain_pickle(tmp_path / "data.pkl")
