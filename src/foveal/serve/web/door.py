"""Who may use the pages: whoever has the token, by this server's own address, and no other site through a browser."""

import ipaddress
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from foveal.errors import FovealError
from foveal.files import write_atomically
from foveal.serve.guard import OPEN, App, Message, Receive, Send, is_one_of, send_problem
from foveal.serve.problems import Problem

TOKEN = "token"  # in an address
# Nothing but what this server gives is loaded, run or shown around a page; pictures may also be made in the page.
SECURITY = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class Door:
    """An ASGI application around a guarded one, for browsers.

    A request has to name this server by an address, "localhost" or its host: any other name may have been bound to this
    address by whoever owns it. A request that another site made is refused. A token in the address of a page becomes a
    cookie that no script reads and no other site sends, and the cookie becomes the key that the guard asks for.

    Args:
        app: the guarded application.
        host: that the server listens on.
        keys: of which one is the token; without any everybody on this computer may come in.
        pages: addresses that answer pages, such as "/explore".
    """

    def __init__(self, app: App, *, host: str, keys: Sequence[str], pages: Sequence[str]) -> None:
        self._app = app
        self._host = host
        self._keys = tuple(keys)
        self._pages = frozenset(pages)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _secured(send)
        headers = dict(scope["headers"])
        try:
            self._check_host(headers)
            _check_site(scope, headers)
            if scope["method"] == "GET" and scope["path"] in self._pages and await self._enter(scope, headers, send):
                return
            scope = self._with_key(scope, headers)
        except Problem as problem:
            await send_problem(send, problem, scope["path"])
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        name = _host_of(headers)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if name not in ("localhost", self._host):
                raise Problem(
                    421,
                    "wrong_host",
                    f"this server is not called {name[:64]!r}; open the address that the command printed",
                    field="Host",
                ) from None

    async def _enter(self, scope: Message, headers: dict[bytes, bytes], send: Send) -> bool:
        """Exchange a token in the address for a cookie; say whether there was one."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in query if name == TOKEN]
        if not tokens:
            return False
        if self._keys and not is_one_of(tokens[0].encode("utf-8", "replace"), self._keys):
            raise _no_token()
        rest = urlencode([pair for pair in query if pair[0] != TOKEN])
        cookie = f"{cookie_name(headers)}={tokens[0]}; Path=/; HttpOnly; SameSite=Strict"
        cookie += "; Secure" if scope.get("scheme") == "https" else ""
        answer = {"location": scope["path"] + (f"?{rest}" if rest else ""), "content-length": "0"}
        if self._keys:
            answer["set-cookie"] = cookie
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in answer.items()]
        await send({"type": "http.response.start", "status": 303, "headers": encoded})
        await send({"type": "http.response.body", "body": b""})
        return True

    def _with_key(self, scope: Message, headers: dict[bytes, bytes]) -> Message:
        """Return the request with the key of its cookie; one that brings a key itself goes on as it is."""
        open_to_all = not self._keys or scope["path"].startswith(OPEN)
        if open_to_all or b"authorization" in headers or b"x-api-key" in headers:
            return scope
        token = _cookie(headers)
        if token is None or not is_one_of(token, self._keys):
            raise _no_token()
        return {**scope, "headers": [*scope["headers"], (b"x-api-key", token)]}


def cookie_name(headers: dict[bytes, bytes]) -> str:
    """Return the name of the cookie; with the port, since browsers give a cookie to all ports of a host."""
    port = urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").port
    return f"foveal-{port or 80}"


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(24)


def kept_token(path: Path) -> str:
    """Return the token in a file that the user alone may read, made where there is none: pages outlive their server.

    Raises:
        FovealError: it can be neither read nor written.
    """
    try:
        if path.is_file() and not path.stat().st_mode & 0o077:
            token = path.read_text(encoding="ascii").strip()
            if len(token) >= 16:
                return token
        path.parent.mkdir(parents=True, exist_ok=True)
        token = new_token()
        staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        staging.touch(mode=0o600)
        write_atomically(path, token + "\n", staging=staging)
        return token
    except (OSError, UnicodeDecodeError) as error:
        raise FovealError(f"the token of the pages cannot be kept in {path}: {error}; check the permissions") from error


def _host_of(headers: dict[bytes, bytes]) -> str:
    try:
        found = urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}")
        return (found.hostname or "").lower() if found.port is None or found.port > 0 else ""
    except ValueError:
        return ""


def _check_site(scope: Message, headers: dict[bytes, bytes]) -> None:
    """Refuse what another site asks for: by its origin, and where a browser says who asked."""
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin")
    is_ours = origin is None or origin.decode("latin-1") == f"{scope.get('scheme', 'http')}://{host}"
    asked_by = headers.get(b"sec-fetch-site", b"none")
    is_visit = headers.get(b"sec-fetch-mode") == b"navigate" and scope["method"] == "GET"
    if not is_ours or (asked_by not in (b"none", b"same-origin") and not is_visit):
        raise Problem(403, "other_site", "another site asked for this; open the page itself", field="Origin")


def _cookie(headers: dict[bytes, bytes]) -> bytes | None:
    try:
        found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(cookie_name(headers))
    except (CookieError, ValueError):
        return None
    return None if found is None else found.value.encode("utf-8", "replace")


def _no_token() -> Problem:
    return Problem(401, "no_token", "open the address that the command printed: it ends in ?token=...")


def _secured(send: Send) -> Send:
    """Return `send` with the headers of `SECURITY`, where an answer does not say something else."""

    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            more = [(name.encode(), value.encode()) for name, value in SECURITY.items() if name.encode() not in names]
            message = {**message, "headers": [*given, *more]}
        await send(message)

    return secured
