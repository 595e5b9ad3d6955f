"""Models exchanged while they answer: verified first, and nothing lost; heads and stores belong to them."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from serving import encoded, pixels, save_heads, served, tiny_model, write_model

from foveal.backbone.licence import licence_named
from foveal.errors import FovealError, LicenceError, WeightsError
from foveal.features.extract import load
from foveal.features.extraction import open_extraction
from foveal.features.stamp import StoreSettings
from foveal.images.imageset import ImageSet
from foveal.serve.loaded import Source, open_source
from foveal.serve.problems import Problem
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.predict import Predictor

pytestmark = pytest.mark.anyio
KEY = "an-admin-key-of-enough-letters"
ADMIN = {"authorization": f"Bearer {KEY}"}
PICTURE, PNG = encoded(pixels(0)), {"content-type": "image/png"}


def vector(answer: httpx.Response) -> np.ndarray:
    return np.array(answer.json()["data"][0]["embedding"])


async def embedding(client: httpx.AsyncClient) -> np.ndarray:
    return vector(await client.post("/v1/embeddings", content=PICTURE, headers=PNG))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return write_model(tmp_path / "first", tiny_model(0))


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write_model(tmp_path / "second", tiny_model(5))


async def test_a_model_is_exchanged_under_load_and_every_answer_is_of_one_of_both(first: Path, second: Path) -> None:
    old, new = (tiny_model(seed).extract(pixels(0)).cls[0].numpy() for seed in (0, 5))
    found: list[np.ndarray] = []
    async with served(open_source(Source(str(first))), admin_key=KEY) as (client, service):
        swap = asyncio.create_task(client.post("/v1/admin/swap", json={"model": str(second)}, headers=ADMIN))
        while not swap.done():
            found += await asyncio.gather(*(embedding(client) for _ in range(6)))
        answer = await swap
        found.append(await embedding(client))
        assert service.loaded.source is not None
        assert service.loaded.source.model == str(second)
    assert answer.status_code == 200
    assert answer.json()["identity"] == tiny_model(5).identity
    is_new = [bool(np.allclose(one, new, atol=1e-5)) for one in found]
    assert all(np.allclose(one, new if flag else old, atol=1e-5) for one, flag in zip(found, is_new, strict=True))
    assert (is_new[0], is_new[-1]) == (False, True)


async def test_a_model_that_fails_leaves_the_old_one(first: Path, tmp_path: Path) -> None:
    broken = tiny_model(5)
    with torch.no_grad():
        broken.engine.backbone.norm.weight[0] = float("nan")
    nan = write_model(tmp_path / "nan", broken)
    with torch.no_grad():
        broken.engine.backbone.norm.weight[0] = 3e38
    infinite = write_model(tmp_path / "infinite", broken)
    restricted = tiny_model(6)
    restricted.card = restricted.card.model_copy(update={"licence": licence_named("CC-BY-NC-4.0")})
    closed = write_model(tmp_path / "closed", restricted)
    async with served(open_source(Source(str(first))), admin_key=KEY) as (client, _):
        before = await embedding(client)
        requests = [
            ({"model": str(tmp_path / "nothing")}, "is no file or folder"),
            ({"model": str(nan)}, "holds NaN"),
            ({"model": str(infinite)}, "answers numbers that are not finite"),
            ({"model": str(closed)}, "CC-BY-NC-4.0"),
            ({"heads": [str(tmp_path / "nothing")]}, "is not a head folder"),
        ]
        for request, words in requests:
            answer = await client.post("/v1/admin/swap", json=request, headers=ADMIN)
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "swap_refused")
            assert words in answer.json()["error"]["message"]
        np.testing.assert_array_equal(await embedding(client), before)
        accepted = await client.post(
            "/v1/admin/swap", json={"model": str(closed), "accept_licence": "CC-BY-NC-4.0"}, headers=ADMIN
        )
    assert accepted.status_code == 200


def test_an_engine_is_chosen_on_pictures_that_are_given(first: Path, tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="calibrated on pictures like those to come; give some with --images"):
        open_source(Source(str(first), fast=True))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(PICTURE[:50])
    with pytest.raises(FovealError, match="none of the 1 images can be read"):
        open_source(Source(str(first), engine="openvino", images=str(tmp_path / "photos")))
    (tmp_path / "photos" / "1.png").write_bytes(PICTURE)
    loaded = open_source(Source(str(first), engine="openvino", precision="fp32", images=str(tmp_path / "photos")))
    assert loaded.model.engine.description["name"] == "openvino"


async def test_only_the_admin_key_opens_the_door(first: Path) -> None:
    async with served(open_source(Source(str(first))), admin_key=KEY, api_keys=["an-api-key-of-letters"]) as (
        client,
        _,
    ):
        found = [
            (await client.post("/v1/admin/swap", json={}, headers={"authorization": f"Bearer {key}"})).status_code
            for key in ("an-api-key-of-letters", KEY + "x", KEY)
        ]
    assert found == [401, 401, 200]


async def test_one_exchange_at_a_time(first: Path) -> None:
    async with served(open_source(Source(str(first))), admin_key=KEY) as (client, _):
        answers = await asyncio.gather(*(client.post("/v1/admin/swap", json={}, headers=ADMIN) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]


async def test_a_server_that_stops_opens_no_other_model(first: Path, second: Path) -> None:
    async with served(open_source(Source(str(first))), admin_key=KEY) as (client, service):
        service.admission.is_draining = True
        answer = await client.post("/v1/admin/swap", json={"model": str(second)}, headers=ADMIN)
        assert service.loaded.source == Source(str(first))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert answer.headers["retry-after"] == "1"


async def test_heads_answer_as_they_do_alone_and_belong_to_their_model(first: Path, second: Path) -> None:
    classes, masks, _ = save_heads(first.parent)
    loaded = open_source(Source(str(first), heads=(f"animals={classes}", f"ground={masks}")))
    pictures = [pixels(number, *((33, 51), (29, 44))[number % 2]) for number in range(9)]
    animals, ground = loaded.heads["animals"], loaded.heads["ground"]
    assert isinstance(animals, ClassPredictor)
    assert isinstance(ground, Predictor)
    prepared = np.stack([loaded.model.preprocessing()(picture) for picture in pictures])
    async with served(loaded, max_wait_ms=20) as (_, service):
        probabilities = await service.head(loaded, "animals", [encoded(picture) for picture in pictures])
        found = await service.head(loaded, "ground", pictures, size=28)
        rows = await service.infer(loaded, prepared, tokens=False, heads=["ground", "animals"])
        with pytest.raises(Problem, match="no head of that name; heads: animals, ground; did you mean 'animals'"):
            await service.head(loaded, "animal", pictures)
        with pytest.raises(Problem, match="sides that are multiples of 7"):
            await service.infer(loaded, prepared[:, :, :27], tokens=True, heads=[])
    for number, picture in enumerate(pictures):
        np.testing.assert_allclose(probabilities[number], animals.probabilities([picture])[0], atol=1e-5)
        np.testing.assert_array_equal(found[number], ground.predict(picture, size=28))
        expected = ground.scores(torch.from_numpy(prepared[number : number + 1]))[0]
        np.testing.assert_allclose(rows[number][0], expected, atol=1e-4)
        shares = torch.from_numpy(rows[number][1]).softmax(dim=0)
        np.testing.assert_allclose(shares, probabilities[number], atol=1e-5)
    with pytest.raises(WeightsError, match="was fitted on"):
        open_source(Source(str(second), heads=(str(classes),)))
    with pytest.raises(FovealError, match="two heads are called a"):
        open_source(Source(str(first), heads=(f"a={classes}", f"a={masks}")))
    assert list(open_source(Source(str(first), heads=(str(classes),))).heads) == ["classes"]
    with pytest.raises(FovealError, match="cannot stand in an address"):
        open_source(Source(str(first), heads=(f"../a={classes}",)))


def test_a_licence_is_accepted_before_weights_are_read(tmp_path: Path) -> None:
    model = tiny_model()
    model.card = model.card.model_copy(update={"licence": licence_named("CC-BY-NC-4.0")})
    folder = write_model(tmp_path / "model", model)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(LicenceError, match=r"--accept-licence CC-BY-NC-4\.0"):
        open_source(Source(str(folder)))
    (folder / "model.safetensors").write_bytes(weights)
    open_source(Source(str(folder), accept_licence="CC-BY-NC-4.0"))
    assert open_source(Source(str(folder))).name == "tiny"  # accepted once for serving


def test_a_store_belongs_to_its_model(first: Path, second: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(encoded(pixels(number)))
    images = ImageSet.open(tmp_path / "photos")
    open_extraction(tmp_path / "store", load(first), images, StoreSettings()).run()
    loaded = open_source(Source(str(first), store=tmp_path / "store"))
    assert loaded.store is not None
    assert len(loaded.store) == 3
    with pytest.raises(FovealError, match="holds features of the model tiny"):
        open_source(Source(str(second), store=tmp_path / "store"))
