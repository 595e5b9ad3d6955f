"""What a server can do wrong, and what is left on the disk afterwards."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from fake_server import Answer, FakeServer

from foveal.backbone.partial import Partial
from foveal.backbone.transfer import Patience, Wanted, fetch
from foveal.errors import DownloadError

BODY = np.random.default_rng(0).bytes(100_003)
OTHER = np.random.default_rng(1).bytes(100_003)
SHA256 = hashlib.sha256(BODY).hexdigest()
QUICK = Patience(timeout_s=5.0, attempts=3, backoff_s=0.01, sync_s=0.0)


class Fetch:
    """`fetch` of one url of the server into one partial file, as often as wanted."""

    def __init__(self, server: FakeServer, folder: Path) -> None:
        server.files["/x.pth"] = BODY
        self.server, self.path = server, folder / "x.partial"

    def __call__(self, *, patience: Patience = QUICK, url: str | None = None, **known: object) -> bytes:
        wanted = Wanted(url or f"{self.server.url}/x.pth", **known)
        partial = Partial(self.path, url=wanted.url)
        sha256 = fetch(wanted, partial, patience=patience)
        assert sha256 == hashlib.sha256(self.path.read_bytes()).hexdigest()
        return self.path.read_bytes()


@pytest.fixture
def fetched(server: FakeServer, tmp_path: Path) -> Fetch:
    return Fetch(server, tmp_path)


def test_whole_file_comes_in_one_request(fetched: Fetch) -> None:
    assert fetched(size_bytes=len(BODY), sha256=SHA256) == BODY
    assert fetched.server.ranges() == [None]


def test_connection_closed_in_the_body_is_continued_where_it_broke(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(send=30_001), Answer(send=20_000), Answer()]
    assert fetched() == BODY
    assert fetched.server.ranges() == [None, "bytes=30001-", "bytes=50001-"]
    assert fetched.server.requests[1][1]["If-Range"].startswith('"')
    assert fetched.server.sent_bytes == len(BODY)


def test_server_that_is_always_short_is_given_up(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(claim=200_000)]  # lies about the length, also of ranges
    message = r"x\.pth: .* gave up after 3 failures in a row; \d+ bytes are kept, run again to continue"
    with pytest.raises(DownloadError, match=message):
        fetched()


def test_truncated_chunked_body_is_noticed(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(chunked=True, send=40_000), Answer(chunked=True)]
    assert fetched(sha256=SHA256) == BODY
    assert fetched.server.ranges() == [None, "bytes=40000-"]


def test_file_without_length_or_hash_is_refused(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(claim=-1)]
    with pytest.raises(DownloadError, match="does not say how long the file is and no sha256 is known"):
        fetched()
    assert fetched(sha256=SHA256) == BODY


def test_truncated_body_without_length_is_caught_by_the_known_size(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(claim=-1, send=1000), Answer(claim=-1)]
    assert fetched(size_bytes=len(BODY)) == BODY


@pytest.mark.parametrize("claim", [None, -1])
def test_longer_file_is_another_file(fetched: Fetch, claim: int | None) -> None:
    fetched.server.files["/x.pth"] = BODY + b"more"
    fetched.server.answers = [Answer(claim=claim)]
    with pytest.raises(
        DownloadError, match=r"more than the 100003 bytes|has 100007 bytes, .* has 100003: another file"
    ):
        fetched(size_bytes=len(BODY), sha256=SHA256)
    assert not fetched.path.exists()
    assert len(fetched.server.requests) == 1


def test_other_file_of_equal_length_is_not_kept(fetched: Fetch) -> None:
    fetched.server.files["/x.pth"] = OTHER
    with pytest.raises(DownloadError, match=rf"not the file that is known: its sha256 is [0-9a-f]+, expected {SHA256}"):
        fetched(sha256=SHA256)
    assert list(fetched.path.parent.iterdir()) == []


def test_length_that_understates_is_caught_by_the_hash(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(claim=100)]
    with pytest.raises(DownloadError, match="not the file that is known"):
        fetched(sha256=SHA256)


def test_slow_server_is_given_up_though_every_read_succeeds(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(chunk=1, pause_s=0.02)]
    slow = Patience(timeout_s=5.0, stall_s=0.2, stall_bytes=5000, attempts=2, backoff_s=0.01)
    with pytest.raises(DownloadError, match=r"too slow: \d+ bytes in .* gave up after 2 failures"):
        fetched(patience=slow)
    fetched.server.answers = [Answer()]
    assert fetched() == BODY  # what came was kept
    assert fetched.server.ranges()[-1] not in (None, "bytes=0-")


def test_silent_server_times_out(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(chunk=50_000, pause_s=1.0), Answer()]
    assert fetched(patience=Patience(timeout_s=0.2, attempts=2, backoff_s=0.01)) == BODY
    assert fetched.server.ranges() == [None, "bytes=50000-"]


def test_server_that_ignores_ranges_sends_all_again(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(send=30_001), Answer(ignore_range=True)]
    assert fetched() == BODY
    assert fetched.server.sent_bytes == 30_001 + len(BODY)


def test_changed_file_is_not_patched_onto_the_old_one(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(send=30_001)]
    with pytest.raises(DownloadError):
        fetched(patience=Patience(attempts=1))
    fetched.server.files["/x.pth"], fetched.server.answers = OTHER, [Answer()]
    assert fetched() == OTHER  # If-Range made the server send all


def test_server_that_heeds_ranges_but_not_if_range_is_seen_through(fetched: Fetch) -> None:
    # The second answer is a part of a file with another ETag.
    answers = [Answer(send=30_001, etag='"a"'), Answer(etag='"b"', heeds_if_range=False), Answer(etag='"b"')]
    fetched.server.answers = answers
    assert fetched() == BODY
    assert fetched.server.ranges() == [None, "bytes=30001-", None]


def test_range_that_starts_elsewhere_is_refused(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(send=30_001), Answer(shift=5), Answer()]
    assert fetched() == BODY
    assert fetched.server.ranges() == [None, "bytes=30001-", None]


def test_weak_validator_does_not_resume_an_unknown_file(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(send=30_001, etag='W/"a"'), Answer(etag='W/"a"')]
    assert fetched() == BODY
    assert fetched.server.ranges() == [None, None]


def test_file_that_became_shorter_is_begun_anew(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(send=90_000, etag='"a"')]
    with pytest.raises(DownloadError):
        fetched(patience=Patience(attempts=1))
    fetched.server.files["/x.pth"] = BODY[:50_000]
    fetched.server.answers = [Answer(etag='"a"')]  # 416: the range is beyond the end
    assert fetched() == BODY[:50_000]
    assert fetched.server.ranges() == [None, "bytes=90000-", None]


def test_finished_partial_file_is_recognised_by_416(fetched: Fetch) -> None:
    fetched()
    fetched.server.requests.clear()
    assert fetched() == BODY
    assert fetched.server.ranges() == ["bytes=100003-"]
    assert fetched.server.sent_bytes == len(BODY)


def test_damaged_partial_file_is_fetched_again(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(send=30_001)]
    with pytest.raises(DownloadError):
        fetched(patience=Patience(attempts=1), sha256=SHA256)
    data = bytearray(fetched.path.read_bytes())
    data[100] ^= 1
    fetched.path.write_bytes(bytes(data))
    fetched.server.answers = [Answer()]
    assert fetched(sha256=SHA256) == BODY
    assert fetched.server.ranges()[1:] == ["bytes=30001-", None]


def test_bytes_that_were_not_synced_are_not_trusted(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(send=30_001)]
    with pytest.raises(DownloadError):
        fetched(patience=Patience(attempts=1))
    with fetched.path.open("ab") as file:
        file.write(bytes(500))  # as after a power cut
    fetched.server.answers = [Answer()]
    assert fetched() == BODY


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_errors_are_tried_again(fetched: Fetch, status: int) -> None:
    fetched.server.answers = [Answer(status=status, headers={"Retry-After": "0"}), Answer(status=status), Answer()]
    assert fetched() == BODY
    assert len(fetched.server.requests) == 3


def test_lasting_server_error_is_told_with_its_status(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(status=500)]
    with pytest.raises(
        DownloadError, match=r"x\.pth: the server answered 500 .*gave up after 3 failures.*try again later"
    ):
        fetched()
    assert len(fetched.server.requests) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_final_errors_are_not_tried_again(fetched: Fetch, status: int) -> None:
    fetched.server.answers = [Answer(status=status)]
    with pytest.raises(DownloadError, match=rf"answered {status} .*check the name"):
        fetched()
    assert len(fetched.server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_followed_and_keep_the_range(fetched: Fetch, status: int) -> None:
    there = {"Location": f"{fetched.server.url}/x.pth"}
    fetched.server.files["/old"] = b""
    answers = [
        Answer(status=status, headers=there),
        Answer(send=30_001),
        Answer(status=status, headers=there),
        Answer(),
    ]
    fetched.server.answers = answers
    assert fetched(url=f"{fetched.server.url}/old") == BODY
    assert fetched.server.ranges() == [None, None, "bytes=30001-", "bytes=30001-"]


def test_redirect_to_plain_http_elsewhere_is_refused(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(status=302, headers={"Location": "http://example.org/x.pth"})]
    with pytest.raises(DownloadError, match=r"http://example\.org/x\.pth: only https is fetched"):
        fetched()


def test_endless_redirects_end(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(status=302, headers={"Location": "/x.pth"})]
    with pytest.raises(DownloadError, match="answered 302"):
        fetched()


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://example.org/x", "data:,x"])
def test_other_schemes_are_refused(fetched: Fetch, url: str) -> None:
    with pytest.raises(DownloadError, match="only https is fetched"):
        fetched(url=url)


def test_compressed_answer_is_refused(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(DownloadError, match="sends it as gzip"):
        fetched()


def test_no_server_is_told(fetched: Fetch) -> None:
    with pytest.raises(DownloadError, match=r"cannot connect .*refused.*gave up after 3 failures"):
        fetched(url="http://127.0.0.1:9/x.pth")


def test_file_larger_than_the_disk_is_refused_before_it_is_fetched(fetched: Fetch) -> None:
    fetched.server.answers = [Answer(claim=10**17)]
    with pytest.raises(
        DownloadError, match=r"cannot be written \(No space left on device\): 1(0){17} bytes are needed, \d+ are"
    ):
        fetched()
    assert len(fetched.server.requests) == 1


def test_large_file_gets_through_a_line_that_breaks_often(fetched: Fetch) -> None:
    body = bytes(5 * 17 * 2**20)
    fetched.server.files["/x.pth"] = body
    fetched.server.answers = [Answer(send=17 * 2**20, chunk=2**22)]
    assert len(fetched(patience=Patience(attempts=2, backoff_s=0.01))) == len(body)
    assert len(fetched.server.requests) == 5


def test_server_that_makes_us_begin_again_and_again_is_given_up(fetched: Fetch) -> None:
    fetched.server.files["/x.pth"] = bytes(34 * 2**20)
    begun = Answer(send=17 * 2**20, chunk=2**22, etag='"a"')
    fetched.server.answers = [begun, Answer(etag='"b"', heeds_if_range=False)] * 10
    with pytest.raises(DownloadError, match="gave up after 3 failures in a row"):
        fetched()
    assert len(fetched.server.requests) == 3
