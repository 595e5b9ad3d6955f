"""`foveal backend`: what is wrong is said before a model is opened."""

from pathlib import Path

import pytest

from foveal.cli.main import main


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is no annotation project"),
        (["--precision", "2"], "precision=2; choose a share above 0 and below 1"),
        (["--port", "70000"], "65535"),
    ],
)
def test_faults_are_said_before_a_model_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["backend", str(tmp_path), "--model", "none", *options]) == 2
    assert message in capsys.readouterr().err
