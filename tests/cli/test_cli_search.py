import json
from pathlib import Path

import pytest
from PIL import Image

from foveal.cli.main import main


@pytest.fixture
def store(model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["extract", str(photos), "--model", str(model_folder), "--out", str(tmp_path / "store")]) == 0
    capsys.readouterr()
    return tmp_path / "store"


def test_search_prints_a_line_a_neighbour_and_writes_what_is_asked_for(
    store: Path, model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = str(photos / "cat" / "5.png")
    files = ["--png", str(tmp_path / "x.png"), "--html", str(tmp_path / "x.html"), "--json", str(tmp_path / "x.json")]
    assert main(["search", str(store), query, "row:2", "-k", "3", *files]) == 0
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[:2] for line in lines] == [[name, str(rank)] for name in (query, "row:2") for rank in (1, 2, 3)]
    assert lines[0][2] == "1.0000"
    assert lines[0][4] == "cat/5.png"
    assert "exact search of 24 rows" in err
    report = json.loads((tmp_path / "x.json").read_text())
    assert [n["uri"] for n in report["results"][0]["neighbours"]] == [line[4] for line in lines[:3]]
    assert report["stamp"]["model"]["name"] == "tiny"
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[0] == 4 * 160 + 3 * 4
    assert (tmp_path / "x.html").read_text().count("data:image/jpeg") == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["row:1", "--exact", "--ann"], "--exact and the index exclude each other"),
        (["row:1", "--png", "no/where/x.png"], "no/where does not exist; create it first"),
        (["row:1", "--png", "x.jpg"], "--png x.jpg: choose a name that ends in .png"),
        (["row:1", "-k", "24"], "choose 1 to 23"),
        (["row:1", "-k", "0"], "Invalid value for '--k'"),
        (["nothing.png"], "nothing.png does not exist; give an image file, or row:NUMBER or uri:NAME"),
        (["row:1", "--ann", "--device", "cuda"], "--device is of an exact search and has no effect beside --ann"),
        (["row:1", "--index", "no/where"], "there is no index no/where"),
        (["row:1", "--precision", "fp8"], "'fp8' is not one of 'fp32', 'bf16'; did you mean 'fp32'?"),
        (["row:1", "--device", "gpu"], "device 'gpu' is not known; choose cpu, cuda, mps; did you mean 'cuda'?"),
        (["row:1", "--device", "tpu"], "device 'tpu' is not known; choose cpu, cuda, mps; did you mean 'cpu'?"),
        (["row:1", "--ann"], "there is no index"),
        ([], "Missing argument"),
    ],
)
def test_search_explains_what_does_not_work(
    store: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(store), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_index_says_what_is_too_small_for_it(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(store)]) == 2
    assert "24 rows need no index; search them exactly" in capsys.readouterr().err
    assert main(["index", str(store), "--out", str(store)]) == 2
    assert "is not an index, or a damaged one" in capsys.readouterr().err
    assert main(["index", str(store), "--out", str(store.parent)]) == 2
    assert "exists and is not an index; choose another place or remove it" in capsys.readouterr().err
    assert main(["index", str(store.parent)]) == 2
    assert "is not a feature store" in capsys.readouterr().err


def test_a_query_that_is_no_picture_is_named(
    store: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("hello, not a picture")
    assert main(["search", str(store), str(text), "--model", str(model_folder)]) == 2
    assert f"{text}: the bytes start with b'hello, n'" in capsys.readouterr().err
