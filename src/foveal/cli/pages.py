"""How verbs that serve a page of their own listen, and what they need: a token, and the extra `serve`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.serve.loaded import Loaded
    from foveal.serve.service import Service
    from foveal.serve.web.pages import Page

HostOption = Annotated[str, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)]

_TOKEN = "token"


def check_can_serve(extras: str = "serve") -> None:
    """Raise FovealError where what serves pages is not installed; `extras` are those that bring it."""
    try:
        import foveal.serve.server  # noqa: F401
    except ModuleNotFoundError as error:
        raise FovealError(
            f"{error.name} is not installed; the page needs it: pip install 'foveal[{extras}]'"
        ) from error


def check_listening(host: str, port: int) -> None:
    """Refuse what nobody can listen on, before anything is loaded."""
    from foveal.serve.settings import read_settings

    read_settings(given={"host": host, "port": port, "insecure": True}, environment={})


def serve_page(
    loaded: "Loaded",
    folder: Path,
    make: "Callable[[Service], Page]",
    *,
    host: str,
    port: int,
    told: Callable[[str, str], str],
    open_page: bool = False,
    timeout_s: float | None = None,
) -> None:
    """Serve a page until Ctrl-C.

    Args:
        loaded: the model behind it.
        folder: keeps the token of the page, so that its address stays the same.
        make: returns the page, given the service that answers it.
        host: to listen on.
        port: to listen on; 0 takes a free one.
        told: returns what is printed once it listens, given the page's address and the token.
        open_page: open it in the browser.
        timeout_s: for an answer; None is the server's own.

    Raises:
        FovealError: it cannot listen there, or the token cannot be kept.
    """
    from foveal.serve.server import serve
    from foveal.serve.service import Service
    from foveal.serve.settings import read_settings
    from foveal.serve.web.door import TOKEN, kept_token

    token = kept_token(folder / _TOKEN)
    given = {"host": host, "port": port, "api_keys": [token], **({} if timeout_s is None else {"timeout_s": timeout_s})}
    service = Service(loaded, read_settings(given=given, environment={}))
    page = make(service)

    def listening(url: str) -> None:
        address = f"{url}{page.path}"
        typer.echo(told(address, token))
        if open_page:
            typer.launch(f"{address}?{TOKEN}={token}")

    serve(service, [page], listening=listening)
