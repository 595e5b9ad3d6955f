import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

import foveal
from foveal.cli import main as entry
from foveal.cli.main import main
from foveal.errors import FovealError


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"foveal {foveal.__version__}\n"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("evaluate", "pca", "extract"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nkn"], "No such command 'nkn'"),
        (["pretrian"], "No such command 'pretrian'; did you mean 'pretrain'?"),
        (["knn"], "No such command 'knn'; it is foveal evaluate knn"),
        (["distill"], "No such command 'distill'; it is foveal pretrain --recipe distill_vits14"),
        (["evaluate", "knn"], "Missing option '--model'"),
        (
            ["evaluate", "knn", "--modle", "x"],
            "No such option: --modle (Possible options: --model); see foveal evaluate knn --help",
        ),
        (
            ["pca", "x.png", "--model", "tim:vit"],
            "tim: is no library that is known here; choose timm:, hf:, open_clip:",
        ),
        (["pca", "x.png"], "Missing option '--model'; see foveal pca --help"),
        (["pca", "x.png", "--max-images", "0"], "'--max-images'"),
        (["evaluate", "knn", "--model", "no/where", "--data", "x"], "no/where is no file or folder here and no known"),
        (["pca", "no/where.png", "--model", "."], "no/where.png does not exist; give image files"),
    ],
)
def test_wrong_options_exit_with_2_and_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 30)).save("x.png")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("Usage: foveal")


def test_errors_have_a_traceback_only_with_debug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "knn", "--model", str(tmp_path), "--data", "x"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path} is not a model folder")
    assert error.count("\n") == 1
    assert main(["--debug", *arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("error: ")


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """An application of its own in place of the real one, to see how `main` treats what a verb raises."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    monkeypatch.setattr(entry, "app", app)
    return app


def test_interrupt_exits_with_130_and_a_line(verb: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    @verb.command()
    def wait() -> None:
        raise KeyboardInterrupt

    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_brackets_in_an_error_are_printed_as_they_are(verb: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    @verb.command()
    def fail() -> None:
        raise FovealError("shape [/bold] [3, 5] in [red]x")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: shape [/bold] [3, 5] in [red]x\n"


def test_a_defect_is_not_dressed_up_as_an_error_of_the_user(verb: typer.Typer) -> None:
    @verb.command()
    def break_down() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main([])


def test_installed_command_runs(tmp_path: Path) -> None:
    code = "import sys; from foveal.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "extract", str(tmp_path), "--model", str(tmp_path), "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()
