"""The package as a user installs it: a wheel in an environment of its own, without the tools of development."""

import sys
from pathlib import Path

import pytest
from child import output_of

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]


def run(*command: str | Path, cwd: Path) -> str:
    return output_of(command, cwd=cwd, timeout_s=1200)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel with its demo extra; returns its bin folder."""
    folder = tmp_path_factory.mktemp("environment")
    constraints = ROOT / "constraints.txt"
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    wheel = next(folder.glob("foveal-*.whl"))
    run(folder / "venv/bin/pip", "install", "--constraint", constraints, f"{wheel}[demo]", cwd=folder)
    return folder / "venv/bin"


def test_installed_wheel_runs_the_demo_and_every_verb(environment: Path, tmp_path: Path) -> None:
    foveal = environment / "foveal"
    short = ["total_steps=4", "batch_size=8", "optimizer.warmup_steps=1", "teacher.temperature_warmup_steps=1"]
    printed = run(foveal, "demo", "--out", "demo", *short, cwd=tmp_path)
    assert "kNN top-1" in printed
    assert (tmp_path / "demo/demo.html").stat().st_size > 50_000
    images, model = "demo/images/test", "demo/run/model"
    measured = run(
        foveal, "evaluate", "knn", "--model", model, "--data", images, "--k", "10", "--out", ".", cwd=tmp_path
    )
    assert "knn-10 top-1" in measured
    assert (tmp_path / "results.html").is_file()
    picture = next((tmp_path / images).rglob("*.png"))
    run(foveal, "pca", "--model", model, picture, "--out", "pca.png", cwd=tmp_path)
    assert (tmp_path / "pca.png").read_bytes().startswith(b"\x89PNG")
    run(foveal, "extract", "--model", model, images, "--out", "features", cwd=tmp_path)
    assert (tmp_path / "features/summary.json").is_file()


def test_every_file_of_the_package_is_in_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.metadata import files; print(*[path for path in files('foveal') if path.parts[0] == 'foveal'])"
    )
    in_wheel = run(environment / "python", "-c", code, cwd=tmp_path).split()
    source = ROOT / "src"
    here = [path for path in (source / "foveal").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path for path in in_wheel if not path.endswith(".pyc")} == {str(path.relative_to(source)) for path in here}
