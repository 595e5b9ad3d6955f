"""How verbs that serve a page of their own listen, and what they need: a token, and the extra `serve`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.serve.loaded import Loaded, Source
    from foveal.serve.service import Service
    from foveal.serve.web.pages import Page

HostOption = Annotated[str, typer.Option(help="Address to listen on.")]
PortOption = Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)]
OpenOption = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")]

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
    """Refuse what nobody can listen on, or somebody listens on already, before anything is loaded."""
    from foveal.serve.server import listen
    from foveal.serve.settings import read_settings

    read_settings(given={"host": host, "port": port, "insecure": True}, environment={})
    listen(host, port).close()


def source_of(model: str | None, features: Path, *, of: str) -> "Source":
    """Return where the model of a page lies: as given, or as whole features say.

    Args:
        model: as given.
        features: folder of a store, which need not be there.
        of: whose model it is, for the error.

    Raises:
        FovealError: neither says where it lies.
    """
    from foveal.features.store import SUMMARY, FeatureStore
    from foveal.serve.loaded import Source

    if model is not None:
        return Source(model)
    origin = FeatureStore.open(features).card.origin if (features / SUMMARY).is_file() else None
    if origin is None:
        raise FovealError(f"nothing says which model {of} is seen by; name one: --model MODEL")
    return Source(str(origin["model"]), num_heads=origin["num_heads"])


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
