"""Heads over HTTP answer as they do in Python, and no name leads elsewhere."""

import asyncio
import base64
import io
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import encoded, pixels, save_heads, served, tiny_model, write_model

from foveal.serve.loaded import Loaded, Source, open_source
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.head import Head, build_network
from foveal.tasks.kinds import head_card
from foveal.tasks.predict import Predictor

pytestmark = pytest.mark.anyio
PICTURES = [pixels(0), pixels(1, 40, 29)]
BASE64 = [base64.b64encode(encoded(picture)).decode() for picture in PICTURES]
NAMES = [
    "..",
    "../masks",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2fmasks",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "%252e%252e%252fetc",
    "..\\..\\etc",
    "..%5c..%5cetc",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "~",
    "~root",
    ".",
    "%00",
    "animals%00",
    "animals%00.png",
    "animals/",
    "animals/..",
    "animals/..%2fground",
    "animals%2f..",
    "animals;x",
    "ANIMALS",
    "animals ",
    "%20animals",
    "animals%0a",
    "animals%0d%0aX: y",
    "C:%5cwindows",
    "file:%2f%2f%2fetc",
    "con",
    "-",
    "--help",
    "%c0%ae%c0%ae%2f",
    "%ff",
    "a" * 5000,
    "$HOME",
    "${jndi:ldap://x}",
    "{name}",
    "*",
    "%EF%BC%8E%EF%BC%8E",
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = tmp_path_factory.mktemp("heads")
    classes, masks, depth = save_heads(folder)
    model = write_model(folder / "model", tiny_model(0))
    return open_source(Source(str(model), heads=(f"animals={classes}", f"ground={masks}", f"far={depth}")))


@pytest.fixture
async def client(loaded: Loaded) -> AsyncIterator[httpx.AsyncClient]:
    async with served(loaded) as (found, _):
        yield found


def picture_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


async def test_labels_with_their_probabilities(client: httpx.AsyncClient, loaded: Loaded) -> None:
    head = loaded.heads["animals"]
    assert isinstance(head, ClassPredictor)
    expected = head.probabilities(PICTURES)
    answer = (await client.post("/v1/heads/animals", json={"images": BASE64, "top": 2})).json()
    assert answer["task"] == "classification"
    for row, probabilities in zip(answer["data"], expected, strict=True):
        order = np.argsort(-probabilities)[:2]
        assert [one["label"] for one in row["labels"]] == [["cat", "dog", "owl"][k] for k in order]
        np.testing.assert_allclose([one["probability"] for one in row["labels"]], probabilities[order], atol=1e-5)
    npy = await client.post("/v1/heads/animals", json={"images": BASE64}, headers={"accept": "application/x-npy"})
    np.testing.assert_allclose(np.load(io.BytesIO(npy.content)), expected, atol=1e-5)


async def test_the_example_of_the_documentation_runs(client: httpx.AsyncClient) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"]["/v1/heads/{name}"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    for name in ("animals", "ground", "far"):
        answer = await client.post(f"/v1/heads/{name}", json={**example, **({} if name == "animals" else {"size": 28})})
        assert answer.status_code == 200, answer.text


async def test_masks_and_depth_of_the_size_of_their_pictures(client: httpx.AsyncClient, loaded: Loaded) -> None:
    ground, far = loaded.heads["ground"], loaded.heads["far"]
    assert isinstance(ground, Predictor)
    assert isinstance(far, Predictor)
    masks = (await client.post("/v1/heads/ground", json={"images": BASE64, "size": 28})).json()["data"]
    for row, picture in zip(masks, PICTURES, strict=True):
        expected = ground.predict(picture, size=28)
        np.testing.assert_array_equal(picture_of(base64.b64decode(row["png"])), expected)
        assert {one["id"]: one["pixels"] for one in row["classes"]} == {
            k: int((expected == k).sum()) for k in np.unique(expected).tolist()
        }
    bare = {"content": encoded(PICTURES[0])}
    for kind in ("image/png", "application/x-npy"):
        headers = {"content-type": "image/png", "accept": kind}
        answer = await client.post("/v1/heads/far?size=28", **bare, headers=headers)
        assert answer.headers["content-type"] == kind
        expected = far.predict(PICTURES[0], size=28)
        if kind == "image/png":
            np.testing.assert_allclose(picture_of(answer.content) * 0.001, expected, atol=6e-4)
        else:
            np.testing.assert_allclose(np.load(io.BytesIO(answer.content))[0], expected, atol=1e-5)


async def test_an_answer_is_named_by_the_head_that_gave_it_though_another_is_served_meanwhile(loaded: Loaded) -> None:
    head = loaded.heads["animals"]
    assert isinstance(head, ClassPredictor)
    expected = head.probabilities(PICTURES[:1])[0]
    card = head_card(loaded.model, "classification", "linear", classes=["ant", "bee", "fly"])
    other = loaded.model.with_head(Head(build_network(card).eval(), card))
    gate = threading.Event()
    async with served(loaded, decode_threads=1) as (client, service):
        service._decoders.submit(gate.wait, 20)
        asked = asyncio.create_task(client.post("/v1/heads/animals", json={"images": BASE64[0]}))
        await asyncio.sleep(0.05)  # its image waits to be opened
        service.loaded = Loaded("other", loaded.model, {"animals": other})
        gate.set()
        answer = (await asked).json()
    assert answer["model"] == "tiny"
    labels = {one["label"]: one["probability"] for one in answer["data"][0]["labels"]}
    assert labels == pytest.approx(dict(zip(["cat", "dog", "owl"], expected, strict=True)), abs=1e-5)


async def test_few_whole_pictures_are_open_at_once(loaded: Loaded) -> None:
    gate = threading.Event()
    async with served(loaded, decode_threads=1) as (_, service):
        service._engine.submit(gate.wait, 20)
        asked = asyncio.create_task(service.head(loaded, "ground", PICTURES * 4, size=28))
        async with asyncio.timeout(10):
            while service._open_pictures._value or service.batcher.num_waiting != 1:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert service.batcher.num_waiting == 1  # and one runs
        gate.set()
        assert [one.shape for one in await asked] == [picture.shape[:2] for picture in PICTURES] * 4


@pytest.mark.parametrize(("room", "expected"), [(-1, 413), (0, 200), (1, 200)])
@pytest.mark.parametrize(("name", "size"), [("ground", 2), ("far", 4)])
async def test_bytes_of_masks_and_depth(loaded: Loaded, name: str, size: int, room: int, expected: int) -> None:
    most = size * sum(picture.shape[0] * picture.shape[1] for picture in PICTURES) + room
    async with served(loaded, max_answer_bytes=most) as (client, _):
        answer = await client.post(f"/v1/heads/{name}", json={"images": BASE64, "size": 28})
    assert answer.status_code == expected
    assert expected == 200 or answer.json()["error"]["code"] == "answer_too_large"


@pytest.mark.parametrize("name", NAMES)
async def test_no_name_leads_elsewhere(client: httpx.AsyncClient, name: str) -> None:
    for path in ("/v1/heads/{}", "/v2/models/{}/infer"):
        answer = await client.post(path.format(name), json={"images": BASE64[0]})
        assert answer.status_code in (404, 405), (path, answer.status_code)
        assert "root:" not in answer.text
        error = answer.json()
        assert {"code", "field"} <= set(error if path.startswith("/v2") else error["error"])
