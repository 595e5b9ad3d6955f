"""The ledger of bad images: once each, counted by reason, and the point where to stop."""

import json

import pytest

from foveal.errors import ImageSetError
from foveal.images.ledger import BadImageLedger


def test_each_image_is_recorded_once(tmp_path):
    ledger = BadImageLedger(tmp_path / "run" / "bad.jsonl", 1000)
    assert ledger.record("a#1", reason="truncated", message='said "so"\n')
    assert not ledger.record("a#1", reason="corrupt", message="again")
    assert ledger.record("b", reason="empty", message="")
    assert ledger.counts == {"truncated": 1, "empty": 1}
    assert len(ledger) == 2
    assert "a#1" in ledger
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert lines[0] == {"uri": "a#1", "reason": "truncated", "message": 'said "so"\n'}
    assert len(lines) == 2


def test_one_too_many_stops_with_counts_and_path(tmp_path):
    ledger = BadImageLedger(tmp_path / "bad.jsonl", 300)
    for index in range(3):
        ledger.record(str(index), reason="empty", message="")
    with pytest.raises(
        ImageSetError, match=r"4 of 300 images are bad \(3 empty, 1 corrupt\), allowed are 3.*bad.jsonl"
    ):
        ledger.record("3", reason="corrupt", message="")
    assert len(ledger.path.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("num_images", "max_bad_share", "max_bad"),
    [(1, 0.01, 1), (99, 0.01, 1), (200, 0.01, 2), (100, 0.29, 29), (50, 0, 0), (7, 1, 7)],
)
def test_number_tolerated(tmp_path, num_images, max_bad_share, max_bad):
    assert BadImageLedger(tmp_path / "bad.jsonl", num_images, max_bad_share).max_bad == max_bad


def test_zero_share_stops_at_the_first(tmp_path):
    with pytest.raises(ImageSetError, match="allowed are 0"):
        BadImageLedger(tmp_path / "bad.jsonl", 10, 0).record("x", reason="empty", message="")


def test_resume_continues_the_file_and_drops_a_cut_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    BadImageLedger(path, 1000).record("a", reason="empty", message="")
    with path.open("a") as file:
        file.write('{"uri": "b", "rea')
    ledger = BadImageLedger(path, 1000)
    assert ledger.counts == {"empty": 1}
    ledger.record("b", reason="corrupt", message="")
    assert [json.loads(line)["uri"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert BadImageLedger(path, 1000).counts == {"empty": 1, "corrupt": 1}


def test_resume_with_only_a_cut_line_starts_empty(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"uri"')
    ledger = BadImageLedger(tmp_path / "bad.jsonl", 10)
    assert len(ledger) == 0
    assert ledger.path.read_text() == ""


def test_resume_over_the_share_stops_at_once(tmp_path):
    path = tmp_path / "bad.jsonl"
    for index in range(3):
        BadImageLedger(path, 300).record(str(index), reason="empty", message="")
    with pytest.raises(ImageSetError, match="3 of 100 images are bad"):
        BadImageLedger(path, 100)
    assert len(BadImageLedger(path, 100, max_bad_share=0.05)) == 3


@pytest.mark.parametrize("text", ["words\n", "[1]\n", '{"uri": "a"}\n'])
def test_damaged_ledger_is_refused(tmp_path, text):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ImageSetError, match="is not a ledger of bad images"):
        BadImageLedger(tmp_path / "bad.jsonl", 10)


@pytest.mark.parametrize(("num_images", "max_bad_share"), [(0, 0.1), (5, -0.1), (5, 1.1)])
def test_impossible_settings_are_refused(tmp_path, num_images, max_bad_share):
    with pytest.raises(ImageSetError, match="allowed: 1 or more, and a share from 0 to 1"):
        BadImageLedger(tmp_path / "bad.jsonl", num_images, max_bad_share)
