"""Every limit one below, at, and one above; and what costs more than it says."""

import asyncio
import base64
import io
import zlib
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import encoded, pixels, served, stub, tiny_model

from foveal.serve.limits import MAX_JSON_DEPTH, Admission
from foveal.serve.loaded import Loaded
from foveal.serve.problems import Problem

pytestmark = pytest.mark.anyio
PICTURE = encoded(pixels(0, 28, 28))
PNG = {"content-type": "image/png"}


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100):
        yield data[start : start + 100]


def code_of(answer: httpx.Response) -> str | int:
    return answer.status_code if answer.status_code == 200 else answer.json()["error"]["code"]


async def asked(
    content: object, *, path: str = "/v1/embeddings", kind: str = "image/png", **settings: object
) -> object:
    async with served(stub(0.0), **settings) as (client, service):
        answer = await client.post(path, content=content, headers={"content-type": kind})
        assert service.admission.images == service.admission.bytes == service.admission.requests == 0
    return code_of(answer)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("room", "expected"), [(-1, "body_too_large"), (0, 200), (1, 200)])
async def test_bytes_of_a_body(chunked: bool, room: int, expected: object) -> None:
    content = in_pieces(PICTURE) if chunked else PICTURE
    assert await asked(content, max_body_bytes=len(PICTURE) + room) == expected


@pytest.mark.parametrize(("room", "expected"), [(-1, "too_many_pixels"), (0, 200), (1, 200)])
async def test_pixels_of_an_image(room: int, expected: object) -> None:
    # The crop's own resize, to a short side of 32, makes 32 x 32.
    content = encoded(pixels(0, 40, 40))
    assert await asked(content, max_pixels=1600 + room) == expected


@pytest.mark.parametrize(("room", "expected"), [(-1, "too_many_pixels"), (0, 200), (1, 200)])
async def test_pixels_that_a_strip_would_become(room: int, expected: object) -> None:
    # 4 x 40 pixels become 32 x 320 before the crop.
    assert await asked(encoded(pixels(0, 4, 40)), max_pixels=32 * 320 + room) == expected


@pytest.mark.parametrize(("room", "expected"), [(-1, "too_many_scans"), (0, 200), (1, 200)])
async def test_scans_of_a_progressive_jpeg(room: int, expected: object) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels(0)).save(file, "JPEG", progressive=True)
    scans = file.getvalue().count(b"\xff\xda")
    assert scans > 1
    assert await asked(file.getvalue(), kind="image/jpeg", max_scans=scans + room) == expected


@pytest.mark.parametrize(("room", "expected"), [(-1, "too_many_images"), (0, 200), (1, 200)])
@pytest.mark.parametrize("form", [False, True])
async def test_images_of_a_request(form: bool, room: int, expected: object) -> None:
    async with served(stub(0.0), max_images=3 + room) as (client, _):
        if form:
            answer = await client.post("/v1/embeddings", files=[("image", ("a.png", PICTURE))] * 3)
        else:
            answer = await client.post("/v1/embeddings", json={"input": [base64.b64encode(PICTURE).decode()] * 3})
    assert code_of(answer) == expected


@pytest.mark.parametrize(("more", "expected"), [(-1, "invalid_value"), (0, "invalid_value"), (1, "json_too_deep")])
async def test_depth_of_json(more: int, expected: object) -> None:
    levels = MAX_JSON_DEPTH + more - 1  # one is the object around
    assert await asked(b'{"input":' + b"[" * levels + b"]" * levels + b"}", kind="application/json") == expected


@pytest.mark.parametrize(("room", "expected"), [(-1, "too_many_patches"), (0, 200), (1, 200)])
async def test_patches_of_an_image(room: int, expected: object) -> None:
    assert await asked(PICTURE, path="/v1/features?fit=resize", max_patches=16 + room) == expected


@pytest.mark.parametrize(("room", "expected"), [(-1, "answer_too_large"), (0, 200), (1, 200)])
async def test_numbers_of_an_answer_in_json(room: int, expected: object) -> None:
    assert await asked(PICTURE, path="/v1/features?tokens=patches", max_json_values=16 * 3 + room) == expected


async def test_images_accepted_at_once() -> None:
    async with served(stub(0.1), max_queue=3, max_images=3) as (client, _):

        def ask(count: int) -> "asyncio.Task[httpx.Response]":
            files = [("image", ("a.png", PICTURE))] * count
            return asyncio.create_task(client.post("/v1/embeddings", files=files))

        first = ask(2)
        await asyncio.sleep(0.05)
        answers = await asyncio.gather(first, ask(2), ask(1))
    assert [code_of(answer) for answer in answers] == [200, "overloaded", 200]


@pytest.mark.parametrize(("room", "expected"), [(-1, "answer_too_large"), (0, 200), (1, 200)])
@pytest.mark.parametrize("token", ["patches", "mean", "pca"])
async def test_bytes_of_patches_in_an_answer(token: str, room: int, expected: object) -> None:
    model = tiny_model()
    most = 2 * 4 * 6 * model.card.backbone.width * 4  # 2 images of 28 x 42 pixels, 4 x 6 patches
    async with served(Loaded("tiny", model), max_answer_bytes=most + room) as (client, service):
        images = [base64.b64encode(encoded(pixels(seed, 28, 42))).decode() for seed in range(2)]
        request = {"images": images, "fit": "pad", "size": 28, "tokens": token}
        answer = await client.post("/v1/features", json=request, headers={"accept": "application/x-npy"})
        assert code_of(answer) == expected, answer.text
        cls = await client.post("/v1/features", json={**request, "tokens": "cls"})  # that hold no patches
        kept = await service.features([encoded(pixels(0))])
    assert cls.json()["data"][0]["grid"] == [4, 6]
    assert kept[0].patches.size == 0


async def test_prepared_images_beyond_the_room_wait() -> None:
    one = 3 * 28 * 28 * 4  # bytes of an image as the network takes it
    limits = {"max_body_bytes": 2 * one, "max_bodies_bytes": 2 * one, "decode_threads": 1}
    loaded = stub(0.0)
    loaded.model.engine.gate.clear()
    async with served(loaded, **limits) as (_, service):
        asked = asyncio.create_task(service.features([PICTURE] * 12))
        gone = asyncio.create_task(service.features([PICTURE] * 12))
        async with asyncio.timeout(20):
            while service.prepared.bytes < 2 * one:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        assert service.prepared.bytes <= (2 + 2) * one  # two may have been on their way
        gone.cancel()
        loaded.model.engine.gate.set()
        async with asyncio.timeout(20):
            assert len(await asked) == 12
        await asyncio.gather(gone, return_exceptions=True)
        assert service.prepared.bytes == 0


async def test_an_unknown_key_is_not_repeated_at_length() -> None:
    async with served(stub(0.0)) as (client, _):
        answer = await client.post("/v1/embeddings", json={"input": "", "k" * 10_000: 1})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "k" * 64


def test_bytes_accepted_at_once() -> None:
    admission = Admission(max_images=1, max_bytes=10)
    admission.reserve(9)
    with pytest.raises(Problem) as error:
        admission.reserve(2)
    assert (error.value.status, error.value.retry_after_s) == (503, 1)
    admission.reserve(1)
    admission.release(10)
    assert admission.bytes == 0


def test_the_pause_is_that_of_the_queue() -> None:
    admission = Admission(max_images=30, max_bytes=1)
    admission.answered(8, 2.0)  # 4 images a second
    with admission.admit(30), pytest.raises(Problem) as error:
        admission.check()
    assert error.value.retry_after_s == 8


def bomb(width: int, height: int, *, inflated: int) -> bytes:
    """A PNG that claims a size, and whose pixels inflate to another number of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(inflated >> 20)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bomb(5000, 5001, inflated=1 << 20), "too_many_pixels"),
        (bomb(60_000, 60_000, inflated=1 << 20), "too_many_pixels"),
        (bomb(2, 2, inflated=256 << 20), 200),  # the pixels that it claims are read, and no more
        (bomb(2000, 2000, inflated=1 << 20), "truncated"),
        (encoded(pixels(0))[:-30], "truncated"),
        (encoded(pixels(0), "JPEG")[:300], "truncated"),
        (b"", "empty"),
        (b"GIF89a", "corrupt"),
        (b"<svg/>", "unknown_format"),
        (b"%PDF-1.7", "format_not_allowed"),
    ],
)
async def test_bombs_and_damaged_images(data: bytes, expected: object) -> None:
    assert await asked(data) == expected


async def test_a_compressed_body_is_refused() -> None:
    async with served(stub(0.0)) as (client, _):
        answer = await client.post("/v1/embeddings", content=PICTURE, headers={**PNG, "content-encoding": "gzip"})
    assert (answer.status_code, code_of(answer)) == (415, "unsupported_encoding")


async def test_a_bad_image_keeps_no_other_from_its_answer() -> None:
    async with served(stub(0.0), max_wait_ms=20) as (client, _):
        contents = [PICTURE, PICTURE[:60], PICTURE]
        answers = await asyncio.gather(
            *(client.post("/v1/embeddings", content=content, headers=PNG) for content in contents)
        )
    assert [answer.status_code for answer in answers] == [200, 422, 200]


async def test_an_engine_that_fails_is_an_answer_without_details(caplog: pytest.LogCaptureFixture) -> None:
    loaded = stub(0.0)

    def fails(batch: object) -> None:
        raise RuntimeError("secret of the request")

    loaded.model.engine.encode = fails
    async with served(loaded) as (client, _):
        answer = await client.post("/v1/embeddings", content=PICTURE, headers=PNG)
        health = await client.get("/health/live")
    assert (answer.status_code, code_of(answer)) == (500, "internal")
    assert "secret" not in answer.text + caplog.text
    assert "RuntimeError at test_serve_limits.py" in caplog.text
    assert health.status_code == 200


def test_probes_look_like_photographs() -> None:
    from foveal.serve.probes import probe_images

    first, again = (probe_images(2, height=64, width=48, channels=4) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first[0].shape == (64, 48, 4)
    assert (first[0] != first[1]).any()
    neighbours = np.corrcoef(first[0][:, :-1, 0].ravel(), first[0][:, 1:, 0].ravel())[0, 1]
    assert neighbours > 0.5  # of white noise: 0
