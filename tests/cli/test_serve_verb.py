"""`foveal serve` refuses in one line what cannot be served, before a model is read where that is possible."""

import sys
from pathlib import Path

import pytest

from foveal.cli.main import main


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "there are no API keys"),
        (["--port", "70000"], "port: Input should be less than or equal to 65535"),
        (["--set", "max_bach=2"], "unknown setting 'max_bach'; did you mean 'max_batch'?"),
        (["--set", "max_batch"], "'max_batch' is not an override; write key=value"),
        (["--settings", "nothing.yaml"], "settings file nothing.yaml cannot be read"),
    ],
)
def test_settings_are_checked_before_the_model(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "nowhere", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nowhere"]) == 2
    assert "nowhere is no file or folder here" in capsys.readouterr().err


def test_a_licence_that_is_not_accepted(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(model_folder)]) == 2
    assert "serve of tiny: its licence is unknown" in capsys.readouterr().err


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "foveal.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "nowhere"]) == 2
    assert "pip install 'foveal[serve]'" in capsys.readouterr().err
