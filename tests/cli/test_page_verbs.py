"""Verbs that serve a page: what both refuse before a model is read, and where they know a model from."""

import socket
from pathlib import Path

import pytest
from PIL import Image

from foveal.cli.main import main
from foveal.cli.pages import source_of


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    return Path("photos")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("explore nowhere --model M", "nowhere does not exist; give a folder"),
        ("explore photos", "nothing says which model photos is seen by; name one: --model MODEL"),
        ("explore photos --out photos/out --model M", "photos/out lies inside photos"),
        ("annotate P --images nowhere --model M", "nowhere does not exist; give a folder"),
        ("annotate P --images photos", "nothing says which model P is seen by; name one: --model MODEL"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_model(
    command: str, words: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *rest = command.split()
    assert main([verb, *rest, "--port", "0", "--no-open"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words}")
    assert [one.name for one in Path().iterdir()] == ["photos"]


@pytest.mark.parametrize("verb", ["explore", "annotate"])
def test_a_port_in_use_is_refused_before_the_model(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([verb, "nowhere", "--model", "M", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --port (0 takes a free one)" in capsys.readouterr().err


def test_features_say_where_their_model_lies(photos: Path, model_folder: Path) -> None:
    assert main(["extract", str(photos), "--model", str(model_folder), "--engine", "torch", "--out", "features"]) == 0
    assert Path(source_of(None, Path("features"), of="photos").model) == model_folder
    assert source_of("another", Path("features"), of="photos").model == "another"
