"""The cache: fetched once, whole or absent, pinned, usable offline, safe between processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fake_server import Answer, FakeServer

from foveal.backbone.download import cached, checkpoints_folder, download
from foveal.backbone.transfer import Patience
from foveal.errors import DownloadError

BODY = np.random.default_rng(2).bytes(70_001)
QUICK = Patience(timeout_s=5.0, attempts=2, backoff_s=0.01, sync_s=0.0)
HEAD, HEAD_FILE = "dinov2_vits14_nyu_linear_head", "dinov2_vits14_nyu_linear_head.pth"


@pytest.fixture
def mirror(server: FakeServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """A mirror with one head, for which no hash is published."""
    server.files[f"/weights/{HEAD_FILE}"] = BODY
    monkeypatch.setenv("FOVEAL_MIRROR", f"{server.url}/weights/")
    return server


def test_file_is_fetched_once_and_then_works_offline(mirror: FakeServer, home: Path, monkeypatch) -> None:
    assert cached(HEAD) is None
    file = download(HEAD, patience=QUICK)
    assert file.path == home / "checkpoints" / HEAD_FILE
    assert file.path.read_bytes() == BODY
    assert file.verified == "pinned"
    assert file.url.startswith("https://dl.fbaipublicfiles.com/")  # where it is from, whoever passed it on
    assert sorted(path.name for path in file.path.parent.iterdir()) == [HEAD_FILE, f"{HEAD_FILE}.json"]
    monkeypatch.setenv("FOVEAL_OFFLINE", "1")
    assert download(HEAD) == file == cached(HEAD)
    assert len(mirror.requests) == 1


def test_offline_says_what_to_put_where(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_OFFLINE", "1")
    message = r"dinov2_vits14 is not, whole, in .*home/checkpoints .* put dinov2_vits14_pretrain\.pth there"
    with pytest.raises(DownloadError, match=message):
        download("dinov2_vits14")
    assert not home.exists()


def test_file_put_into_the_cache_by_hand_is_used_and_not_pinned(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_OFFLINE", "1")
    checkpoints_folder().mkdir(parents=True)
    (checkpoints_folder() / HEAD_FILE).write_bytes(BODY)
    assert download(HEAD).verified == "nobody"
    assert [path.name for path in checkpoints_folder().iterdir()] == [HEAD_FILE]
    with pytest.raises(DownloadError, match=r"not, whole, in .*stick"):
        download(HEAD, folder=home / "stick")  # a copy would count as fetched


@pytest.mark.parametrize(
    ("name", "file", "why"),
    [
        ("dinov2_vits14", "dinov2_vits14_pretrain.pth", r"its sha256 is [0-9a-f]{64}, not b938bf1bc15c"),
        (HEAD, HEAD_FILE, r"no sha256 of it is published"),
    ],
)
@pytest.mark.parametrize("offline", ["0", "1"])
def test_own_file_in_a_folder_is_neither_replaced_nor_pinned(
    mirror: FakeServer, tmp_path: Path, monkeypatch, name: str, file: str, why: str, offline: str
) -> None:
    monkeypatch.setenv("FOVEAL_OFFLINE", offline)
    own = tmp_path / "stick" / file
    own.parent.mkdir()
    own.write_bytes(BODY[:999])
    with pytest.raises(DownloadError, match=rf"{file} is not known to be {name} \({why}.* move it away"):
        download(name, folder=own.parent, patience=QUICK)
    assert [path.name for path in own.parent.iterdir()] == [file]
    assert own.read_bytes() == BODY[:999]
    assert not mirror.requests


def test_damaged_file_that_was_fetched_into_a_folder_is_fetched_again(mirror: FakeServer, tmp_path: Path) -> None:
    file = download(HEAD, folder=tmp_path / "stick", patience=QUICK)
    record = json.loads((tmp_path / "stick" / f"{HEAD_FILE}.json").read_text())
    assert (record["sha256"], record["mtime_ns"]) == (file.sha256, file.path.stat().st_mtime_ns)
    file.path.write_bytes(BODY[:999])
    assert download(HEAD, folder=tmp_path / "stick", patience=QUICK).path.read_bytes() == BODY


def test_wrong_file_put_there_by_hand_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_OFFLINE", "1")
    checkpoints_folder().mkdir(parents=True)
    (checkpoints_folder() / "dinov2_vits14_pretrain.pth").write_bytes(BODY)
    with pytest.raises(DownloadError, match="not, whole, in"):
        download("dinov2_vits14")
    assert cached("dinov2_vits14") is None


def test_pinned_file_that_changes_at_its_source_is_refused(mirror: FakeServer) -> None:
    first = download(HEAD, patience=QUICK)
    first.path.unlink()
    mirror.files[f"/weights/{HEAD_FILE}"] = BODY[::-1]
    with pytest.raises(DownloadError, match=rf"not the file that is known: .* expected {first.sha256}"):
        download(HEAD, patience=QUICK)
    mirror.files[f"/weights/{HEAD_FILE}"] = BODY
    assert download(HEAD, patience=QUICK).sha256 == first.sha256


@pytest.mark.parametrize("damage", [BODY[:-1], BODY[:-1] + b"x", b""])
def test_damaged_file_in_the_cache_is_fetched_again(mirror: FakeServer, damage: bytes, caplog) -> None:
    file = download(HEAD, patience=QUICK)
    file.path.write_bytes(damage)
    assert download(HEAD, patience=QUICK).path.read_bytes() == BODY
    assert "is damaged" in caplog.text


def test_known_size_is_checked_before_anything_is_fetched(mirror: FakeServer) -> None:
    mirror.files["/weights/dinov2_vits14_pretrain.pth"] = BODY
    with pytest.raises(DownloadError, match="has 70001 bytes, the file that is known has 88283115: another file"):
        download("dinov2_vits14", patience=QUICK)


def test_damaged_record_is_an_error_and_not_a_new_pin(mirror: FakeServer) -> None:
    file = download(HEAD, patience=QUICK)
    Path(f"{file.path}.json").write_text("{")
    with pytest.raises(
        DownloadError, match=r"\.pth\.json cannot be understood .*remove it and the file to fetch both anew"
    ):
        download(HEAD, patience=QUICK)


def test_missing_file_on_the_mirror_names_the_url(mirror: FakeServer) -> None:
    with pytest.raises(DownloadError, match=r"weights/dinov2_vitb14_pretrain\.pth: the server answered 404 .*mirror"):
        download("dinov2_vitb14", patience=QUICK)


def test_folder_made_with_to_is_a_mirror_for_a_site_without_network(
    mirror: FakeServer, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick = tmp_path / "stick"
    assert download(HEAD, folder=stick, patience=QUICK).path == stick / HEAD_FILE
    monkeypatch.setenv("FOVEAL_MIRROR", stick.as_uri())
    monkeypatch.setenv("FOVEAL_OFFLINE", "1")
    assert download(HEAD).path == home / "checkpoints" / HEAD_FILE
    with pytest.raises(DownloadError, match=r"stick/dinov2_vits14_pretrain\.pth does not exist"):
        download("dinov2_vits14")
    assert len(mirror.requests) == 1


def test_copy_out_of_the_cache_needs_no_network(mirror: FakeServer, tmp_path: Path, monkeypatch) -> None:
    download(HEAD, patience=QUICK)
    monkeypatch.setenv("FOVEAL_OFFLINE", "1")
    assert download(HEAD, folder=tmp_path / "stick").path.read_bytes() == BODY


def test_mirror_must_be_an_address(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_MIRROR", "/mnt/weights")
    with pytest.raises(DownloadError, match=r"FOVEAL_MIRROR=/mnt/weights is not an address; .*file:///"):
        download(HEAD)


def test_urls_with_one_file_name_do_not_meet(server: FakeServer, home: Path) -> None:
    server.files |= {"/a/model.safetensors": BODY, "/b/model.safetensors": BODY[:500]}
    first, second = (download(f"{server.url}/{x}/model.safetensors", patience=QUICK) for x in "ab")
    assert (first.size_bytes, second.size_bytes) == (70_001, 500)
    assert first.path != second.path


def test_gated_model_says_where_to_ask(home: Path) -> None:
    message = r"xray_dino_vitl16 is given out .*FAIR Noncommercial .* ask for it at https://ai\.meta\.com/"
    with pytest.raises(DownloadError, match=message):
        download("xray_dino_vitl16")


def test_folder_that_cannot_be_written_is_told_with_the_bytes_needed(home: Path) -> None:
    home.write_bytes(b"a file")
    message = r"home/checkpoints cannot be written .*: 88283115 bytes are needed, \d+ are free; .*FOVEAL_HOME"
    with pytest.raises(DownloadError, match=message):
        download("dinov2_vits14")


def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOVEAL_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert checkpoints_folder() == Path("/x/foveal/checkpoints")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert checkpoints_folder() == Path("/h/.cache/foveal/checkpoints")


PROGRAM = """
import sys
from foveal.backbone.download import download
from foveal.backbone.transfer import Patience
file = download(sys.argv[1], patience=Patience(sync_s=0.0, backoff_s=0.01))
print(file.sha256, file.path.stat().st_size)
"""


def start(url: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def test_killed_download_is_continued_by_the_next_process(server: FakeServer, home: Path) -> None:
    server.files["/x.pth"] = BODY
    server.answers = [Answer(chunk=700, pause_s=0.02), Answer()]
    process = start(f"{server.url}/x.pth")
    deadline = time.monotonic() + 60
    while server.sent_bytes < 20_000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert not [path for path in checkpoints_folder().iterdir() if not path.name.startswith(".")]
    assert download(f"{server.url}/x.pth", patience=QUICK).path.read_bytes() == BODY
    begun = int(server.ranges()[1].removeprefix("bytes=").removesuffix("-"))
    assert begun > 10_000
    assert not [path for path in checkpoints_folder().iterdir() if path.name.startswith(".")]


def test_two_processes_fetch_a_file_once(server: FakeServer, home: Path) -> None:
    server.files["/x.pth"] = BODY
    server.answers = [Answer(chunk=1000, pause_s=0.01)]
    processes = [start(f"{server.url}/x.pth") for _ in range(2)]
    printed = {process.communicate(timeout=120)[0] for process in processes}
    assert len(printed) == 1
    assert printed.pop().endswith(" 70001\n")
    assert len(server.requests) == 1


def test_two_threads_fetch_a_file_once(server: FakeServer, home: Path) -> None:
    server.files["/x.pth"] = BODY
    server.answers = [Answer(chunk=10_000, pause_s=0.02)]
    threads = [threading.Thread(target=download, args=(f"{server.url}/x.pth",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(server.requests) == 1


def test_waiting_for_another_process_ends(server: FakeServer, home: Path) -> None:
    server.files["/x.pth"] = BODY
    server.answers = [Answer(chunk=100, pause_s=0.02)]
    process = start(f"{server.url}/x.pth")
    try:
        while not server.requests:
            time.sleep(0.01)
        with pytest.raises(DownloadError, match=r"another process has held .*x\.pth\.lock for"):
            download(f"{server.url}/x.pth", patience=Patience(lock_s=0.3))
    finally:
        process.kill()
        process.communicate(timeout=30)
