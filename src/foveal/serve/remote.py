"""Images from other servers: of hosts that the settings name, at public addresses, without redirects."""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from foveal.serve.problems import Problem

_BLOCK_BYTES = 1 << 16
_CONNECT_S = 3.0  # at most; a server that ends waits for it
_GLOBAL = ipaddress.ip_network("2000::/3")  # all that is routed between networks
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


class Line:
    """The connection of one `fetch`, which another thread may end at any moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_ended = False

    def use(self, line: socket.socket) -> None:
        """Hold a connection; OSError where the line has been ended already."""
        with self._lock:
            self._socket = line
            if self._is_ended:
                raise ConnectionAbortedError

    def end(self) -> None:
        """Wake whoever reads: nothing more comes."""
        with self._lock:
            self._is_ended = True
            if self._socket is not None:
                with suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # that of TLS is not for other threads


def fetch(
    url: str, *, hosts: Sequence[str], max_bytes: int, timeout_s: float, field: str, line: Line | None = None
) -> bytes:
    """Return the file at a url.

    The name is resolved once, and the connection goes to the address that was checked: a name cannot point elsewhere
    in between. Redirects are refused.

    Args:
        url: http or https, of a host in `hosts`.
        hosts: names, exactly as in the url, with ":port" where it is not the usual one.
        max_bytes: of the file.
        timeout_s: for all of it.
        field: of the request, for problems.
        line: to end this from another thread.

    Raises:
        Problem: a host that is not allowed, an address inside, or a server that does not give the file.
    """
    parts = _checked(url, hosts, field)
    ends = time.monotonic() + timeout_s
    line = line or Line()
    timer = threading.Timer(timeout_s, line.end)  # a server may send its headers byte by byte
    timer.daemon = True
    timer.start()
    try:
        connection = _connect(parts, timeout_s, line, field)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"accept": "image/*", "user-agent": "foveal"})
            return _read(connection, max_bytes, ends, field)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failed(type(error).__name__, field) from error
    finally:
        timer.cancel()


def _checked(url: str, hosts: Sequence[str], field: str) -> SplitResult:
    if not hosts:
        raise Problem(422, "urls_not_allowed", "this server fetches no urls; send the image in base64", field=field)
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise Problem(422, "invalid_url", "this is no url; send the image in base64", field=field) from None
    name = host if port is None else f"{host}:{port}"
    if parts.username is not None or parts.password is not None or name not in {one.lower() for one in hosts}:
        raise Problem(422, "host_not_allowed", f"images are fetched from {', '.join(hosts)} only", field=field)
    return parts


def _connect(parts: SplitResult, timeout_s: float, line: Line, field: str) -> http.client.HTTPConnection:
    """Return a connection to an address of the host, all of whose addresses are public."""
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not all(is_public(str(address[0])) for *_, address in found):
        raise Problem(422, "private_address", "this host has an address that is not public", field=field)
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    opened = socket.create_connection((str(found[0][4][0]), port), timeout=min(timeout_s, _CONNECT_S))
    try:
        opened.settimeout(timeout_s)
        if secure:
            context = ssl.create_default_context()
            opened = context.wrap_socket(opened, server_hostname=host, do_handshake_on_connect=False)
        line.use(opened)
        if isinstance(opened, ssl.SSLSocket):
            opened.do_handshake()
    except OSError:
        opened.close()
        raise
    connection.sock = opened
    return connection


def is_public(address: str) -> bool:
    """Say whether an IP address belongs to the public internet, also one written as another kind of address.

    Example:
        >>> is_public("1.1.1.1"), is_public("169.254.169.254"), is_public("::ffff:10.0.0.1")
        (True, False, False)
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None) or found
    if inner in _NAT64:
        inner = ipaddress.IPv4Address(int(inner) & 0xFFFFFFFF)
    return inner.is_global and not inner.is_multicast and (inner.version == 4 or inner in _GLOBAL)


def _read(connection: http.client.HTTPConnection, max_bytes: int, ends: float, field: str) -> bytes:
    parts: list[bytes] = []
    total = 0
    with connection.getresponse() as answer:
        if answer.status != 200:
            raise _failed(f"status {answer.status}", field)
        while block := answer.read1(_BLOCK_BYTES):
            total += len(block)
            if total > max_bytes:
                message = f"the image has more than {max_bytes} bytes; shrink it"
                raise Problem(413, "too_many_bytes", message, field=field)
            if time.monotonic() > ends:
                raise _failed("too slow", field)
            parts.append(block)
    if time.monotonic() > ends:  # what is here may be a part
        raise _failed("too slow", field)
    return b"".join(parts)


def _failed(why: str, field: str) -> Problem:
    return Problem(422, "not_fetched", f"the image could not be fetched ({why}); send it in base64", field=field)
