"""What a request is answered with when it cannot be answered: a status, a stable code, and words."""

from typing import Any

from foveal.errors import BadImageError, FovealError

TOO_LARGE = frozenset({"too_many_pixels", "too_many_bytes", "too_many_scans", "too_many_patches"})


class Problem(FovealError):
    """A request that is refused, or cannot be answered now.

    Args:
        status: of HTTP.
        code: a short, stable word to tell problems apart by.
        message: what was seen, what is allowed, what to do next. It never repeats what was sent at length.
        field: the part of the request that is meant, such as "input.3"; None is the request as a whole.
        retry_after_s: when to come again, for 503.
    """

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The answer, as JSON has it."""
        return {"error": {"code": self.code, "message": str(self), "field": self.field}}

    def body_at(self, path: str) -> dict[str, Any]:
        """Return the answer at an address: clients of the Open Inference Protocol take "error" for a text."""
        if path.startswith("/v2"):
            return {"error": str(self), "code": self.code, "field": self.field}
        return self.body

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        found = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


def stopping() -> Problem:
    """Return the problem of a request to a server that ends."""
    return Problem(503, "stopping", "the server is stopping; ask again, or another one", retry_after_s=1)


def problem_of(error: FovealError, *, field: str | None = None) -> Problem:
    """Return an error of the package as the problem of a request; `field` where it names none itself.

    Example:
        >>> problem_of(BadImageError("truncated", "cut"), field="input.2").body["error"]
        {'code': 'truncated', 'message': 'cut', 'field': 'input.2'}
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, BadImageError):
        return Problem(413 if error.reason in TOO_LARGE else 422, error.reason, str(error), field=field)
    return Problem(422, "invalid_value", str(error), field=field)
