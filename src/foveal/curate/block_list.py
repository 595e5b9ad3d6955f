"""Addresses that images must not come from: a list of domains and of beginnings of URLs."""

from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from foveal.errors import FovealError
from foveal.files import sha256_of
from foveal.images.imageset import ImageSet


class BlockList:
    """Domains, each with all below it, and beginnings of URLs.

    Example:
        >>> blocked = BlockList(["example.com", "https://example.org/adult/"])
        >>> blocked.match("http://images.example.com:8080/1.jpg")
        'example.com'
        >>> blocked.match("https://example.org/1.jpg") is None
        True
    """

    def __init__(self, lines: list[str], *, name: str = "the block list") -> None:
        """Take one domain or beginning of a URL a line; blank lines and those that begin with # are passed over.

        Scheme, port, letter case of the domain and percent signs do not matter.

        Raises:
            FovealError: names the line that is neither, or that nothing is listed.
        """
        self._entries: dict[str, dict[str, str]] = {}  # domain -> beginning of the path -> the entry as written
        for number, line in enumerate(lines, start=1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            try:
                domain, path = _split(entry)
            except ValueError:
                raise FovealError(
                    f"line {number} of {name} is {entry!r}; write one domain (example.com) or the beginning of a URL "
                    "(example.com/adult/) a line"
                ) from None
            self._entries.setdefault(domain, {})["" if path == "/" else path] = entry
        if not self._entries:
            raise FovealError(f"{name} lists nothing; write one domain or the beginning of a URL a line")

    @classmethod
    def open(cls, path: Path) -> "BlockList":
        """Read a file; FovealError where it cannot be read, is not UTF-8 or lists nothing."""
        try:
            return cls(path.read_text(encoding="utf-8").splitlines(), name=str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise FovealError(f"{path} cannot be read ({error}); give a text file, one domain a line") from error

    def match(self, url: str) -> str | None:
        """Return the entry that blocks a URL, or None; one that cannot be read is blocked, as "not a URL"."""
        try:
            domain, path = _split(url)
        except ValueError:
            return "not a URL"
        while domain:
            for beginning, entry in self._entries.get(domain, {}).items():
                if path.startswith(beginning):
                    return entry
            domain = domain.partition(".")[2]
        return None


def _split(url: str) -> tuple[str, str]:
    """Return the domain and what follows it, both in one spelling; ValueError where there is no domain."""
    if any(letter.isspace() for letter in url):
        raise ValueError
    url = url.replace("\\", "/")  # as browsers read it
    whole = url if "://" in url else f"http://{url}"
    parts = urlsplit(whole)
    domain = (parts.hostname or "").strip(".")
    if parts.scheme.lower() not in ("http", "https", "ftp") or not domain:
        raise ValueError
    resolved = urlsplit(urljoin(f"http://{domain}/", parts.path or "/"))
    query = f"?{parts.query}" if parts.query else ""
    return domain if domain.isascii() else domain.encode("idna").decode(), unquote(resolved.path + query)


def url_of(images: ImageSet, row: int) -> str | None:
    """Return where an image came from: its column url, else a uri that is one, else None."""
    if "url" in images.rows.column_names and (url := images.rows.column("url")[row].as_py()):
        return str(url)
    uri = images.uri(row)
    return uri if uri.lower().startswith(("http://", "https://")) else None


def has_urls(images: ImageSet) -> bool:
    """Tell whether `url_of` knows an address of any image."""
    if "url" in images.rows.column_names and images.rows.column("url").null_count < len(images):
        return True
    uris = images.rows.column("uri")
    return bool(pc.any(pc.match_substring_regex(uris, "^https?://", ignore_case=True)).as_py())


def with_urls(images: ImageSet, table: Path) -> ImageSet:
    """Return the set with the column url, from a table of uri and url.

    Args:
        images: the set.
        table: a CSV or Parquet file with the columns uri and url; images that it lacks have none.

    Raises:
        FovealError: the file cannot be read, lacks a column, or names no image of the set.
    """
    try:
        found = pq.read_table(table) if table.suffix == ".parquet" else pyarrow.csv.read_csv(table)
    except (OSError, pa.ArrowException) as error:
        raise FovealError(f"{table} cannot be read ({error}); give CSV or Parquet with the columns uri, url") from error
    if missing := {"uri", "url"}.difference(found.column_names):
        raise FovealError(
            f"{table} has the columns {', '.join(found.column_names)}; missing are {', '.join(sorted(missing))}"
        )
    uris = images.rows.column("uri")
    places = pc.index_in(uris, value_set=found.column("uri").cast(pa.string()).combine_chunks())
    if places.null_count == len(images):
        raise FovealError(
            f"{table} names no image of the set: it begins with {found.column('uri')[0].as_py()!r}, the set with "
            f"{images.uri(0)!r}"
            if len(found)
            else f"{table} has no rows; list uri and url of each image"
        )
    rows = images.rows.drop_columns([name for name in ("url",) if name in images.rows.column_names])
    urls = found.column("url").cast(pa.string()).take(places)
    return ImageSet(rows.append_column("url", urls), root=images.root, num_ignored=images.num_ignored)


def file_hash(path: Path) -> str:
    """Return the sha256 of a file that the user gave; FovealError where it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        raise FovealError(f"{path} cannot be read ({error}); check the path") from error
