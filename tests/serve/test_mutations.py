"""Requests damaged at random: an answer in JSON each, and never an error of the server."""

import random

import pytest
from serving import encoded, pixels, served, stub

pytestmark = pytest.mark.anyio
PNG = encoded(pixels(0, 28, 28))
FORM = (
    b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'
    + PNG[:200]
    + b'\r\n--b\r\ncontent-disposition: form-data; name="tokens"\r\n\r\npatches\r\n--b--\r\n'
)  # fmt: skip
JSON = (
    b'{"images": ["aGVsbG8=", {"image": "data:image/png;base64,AAAA"}, {"type": "image_url", "image_url": '
    b'{"url": "http://a"}}], "tokens": ["cls"], "size": 28, "fit": "crop", "model": "stub"}'
)
BODIES = [
    ("multipart/form-data; boundary=b", FORM),
    ("application/json", JSON),
    ("application/json", JSON.replace(b"images", b"input")),
    ("image/png", PNG),
]
PIECES = [b"\x00", b"\\ud800", b"NaN", b"1e999", b"[[[[", b'"', b"\r\n", b"--b", b"-1", b"9" * 25, b"null", b"true"]
PATHS = ["/v1/features", "/v1/embeddings", "/v1/features?size=28&tokens=cls", "/v1/features?tokens=%ff"]


def damaged(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice([0, 1, 1, 2, 5, 20])):
        place = generator.randrange(len(changed) + 1)
        what = generator.choice(["byte", "piece", "cut"])
        if what == "byte":
            changed[place:place] = bytes([generator.randrange(256)])
        elif what == "piece":
            changed[place:place] = generator.choice(PIECES)
        else:
            del changed[place : place + generator.randrange(1, 30)]
    return bytes(changed)


async def test_damaged_requests_are_answered() -> None:
    generator = random.Random(0)
    statuses = set()
    async with served(stub(0.0)) as (client, service):
        for _ in range(400):
            kind, body = generator.choice(BODIES)
            answer = await client.post(
                generator.choice(PATHS), content=damaged(body, generator), headers={"content-type": kind}
            )
            statuses.add(answer.status_code)
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"code", "message", "field"}
        assert service.admission.images == service.admission.bytes == service.admission.requests == 0
    assert statuses <= {200, 400, 413, 422}
    assert {200, 400, 422} <= statuses
