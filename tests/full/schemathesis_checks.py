"""A check for schemathesis: an error is deliberate, and says in JSON what it is and where."""

import schemathesis


@schemathesis.check
def deliberate(ctx: object, response: schemathesis.Response, case: object) -> None:
    assert response.status_code < 500 or response.status_code in (503, 504), response.status_code
    if response.status_code >= 400:
        error = response.json()
        error = error if isinstance(error.get("error"), str) else error["error"]  # under /v2 the message is a text
        assert error["code"]
        assert "field" in error
