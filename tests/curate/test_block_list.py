import pytest

from foveal.curate.block_list import BlockList
from foveal.errors import FovealError

LIST = ["example.com", "https://example.org/adult/", "# comment", "", "Bücher.example", "host.example/x?id=7"]


@pytest.mark.parametrize(
    ("url", "entry"),
    [
        ("http://example.com/1.jpg", "example.com"),
        ("https://EXAMPLE.com.:8443/", "example.com"),
        ("//images.example.com/1.jpg", None),
        ("https://a.b.example.com/1.jpg", "example.com"),
        ("https://example.com.evil.net/1.jpg", None),
        ("https://notexample.com/1.jpg", None),
        ("https://safe.net@example.com/1.jpg", "example.com"),
        ("https://example.com\\@safe.net/1.jpg", "example.com"),
        ("https://safe.net/?from=example.com", None),
        ("http://example.org/adult/1.jpg", "https://example.org/adult/"),
        ("http://cdn.example.org/%61dult/1.jpg", "https://example.org/adult/"),
        ("http://example.org/safe/../adult/1.jpg", "https://example.org/adult/"),
        ("http://example.org/adults/1.jpg", None),
        ("http://example.org/", None),
        ("https://xn--bcher-kva.example/1.jpg", "Bücher.example"),
        ("https://host.example/x?id=75", "host.example/x?id=7"),
        ("https://host.example/x", None),
        ("http://[::1/1.jpg", "not a URL"),
    ],
)
def test_a_url_is_blocked_by_its_domain_or_its_beginning(url: str, entry: str | None) -> None:
    if url.startswith("//"):
        assert BlockList(LIST).match(url) == "not a URL"
    else:
        assert BlockList(LIST).match(url) == entry


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["0.0.0.0 example.com"], "line 1 of list is '0.0.0.0 example.com'; write one domain"),
        (["example.com", "/path"], "line 2 of list is '/path'"),
        (["javascript://x"], "line 1"),
        (["# nothing"], "list lists nothing"),
    ],
)
def test_a_line_that_is_no_address_is_named(lines: list[str], words: str) -> None:
    with pytest.raises(FovealError, match=words):
        BlockList(lines, name="list")
