import json
from pathlib import Path

import pytest
from fake_server import FakeServer

from foveal.cli.main import main

HEAD = "dinov2_vits14_nyu_linear_head"


def test_models_lists_every_checkpoint_on_a_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["name", "kind", "parameters", "patch", "licence", "size", "sha256", "here"]
    rows = {line[0]: line[1:] for line in lines[1:]}
    assert rows["dinov2_vits14"] == ["backbone", "22.06 M", "14", "Apache-2.0", "88.3 MB", "b938bf1bc15c", "no"]
    assert rows[HEAD][3:] == ["Apache-2.0", "unknown", "not published", "no"]
    assert rows["dinov3_convnext_tiny"] == [
        "backbone",
        "29.00 M",
        "-",
        "DINOv3 License",
        "unknown",
        "not published",
        "on request",
    ]
    assert rows["dinov2_vitg14_ade20k_m2f"][1] == "unknown"


def test_models_shows_one_in_full(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "depth_anything_v2_vitb"]) == 0
    out = capsys.readouterr().out
    assert "parameters:         97,470,785\n" in out
    assert "CC-BY-NC-4.0 (non-commercial terms), https://creativecommons.org/licenses/by-nc/4.0/\n" in out
    assert "export and serve:   once 'CC-BY-NC-4.0' is accepted by name\n" in out
    assert "389,961,218 bytes\n" in out
    assert "sha256 as its publisher states it" in out
    assert "in the cache:       no\n" in out
    assert main(["models", "dinov3_vits16"]) == 0
    out = capsys.readouterr().out
    assert "about 21,000,000\n" in out
    assert "on request only, at https://ai.meta.com/" in out


def test_models_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["dinov2_vitg14_reg"]["parameters"] == 1_136_486_912
    assert rows["dinov2_vitg14_reg"]["backbone"]["num_registers"] == 4
    assert rows[HEAD]["sha256"] is None
    assert main(["models", HEAD, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rows[HEAD]


def test_models_names_the_nearest(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "dinov2_vits_14"]) == 2
    assert "did you mean 'dinov2_vits14'?" in capsys.readouterr().err


def test_download_fetches_and_models_then_shows_it(
    server: FakeServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files |= {f"/{HEAD}.pth": b"weights", "/x.pth": b"more weights"}
    monkeypatch.setenv("FOVEAL_MIRROR", server.url)
    assert main(["download", HEAD, f"{server.url}/x.pth"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{HEAD}: {home}/checkpoints/{HEAD}.pth, 7 bytes, ")
    assert first.endswith("(unverified: no sha256 is published; pinned at first download)")
    assert second.endswith("(unverified: no sha256 is published; pinned at first download)")
    assert main(["models", HEAD]) == 0
    assert f"in the cache:       {home}/checkpoints/{HEAD}.pth (" in capsys.readouterr().out
    (home / "checkpoints" / f"{HEAD}.pth").write_bytes(b"weightz")
    assert main(["models", HEAD]) == 0
    assert "in the cache:       damaged; it will be fetched again" in capsys.readouterr().out
    assert main(["download", HEAD, "--to", str(tmp_path / "stick")]) == 0
    assert (tmp_path / "stick" / f"{HEAD}.pth").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dinov2_vits"], "no known checkpoint is called 'dinov2_vits'"),
        (["dinov3_vitb16"], "ask for it at https://ai.meta.com/"),
        (["ftp://x.org/x.pth"], "only https is fetched"),
        ([], "Missing argument 'NAME...'"),
    ],
)
def test_download_errors_exit_with_2(
    arguments: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_unknown_model_of_a_verb_is_told(home: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "knn", "--model", "dinov2_vitx14", "--data", str(photos)]) == 2
    assert "dinov2_vitx14 is no file or folder here and no known checkpoint; did you mean" in capsys.readouterr().err
