"""`/v1/search`: what `foveal search` finds in the same store."""

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import encoded, pixels, served, tiny_model, write_model

from foveal.errors import FovealError
from foveal.features.extraction import open_extraction
from foveal.features.lookup import search_store
from foveal.features.stamp import StoreSettings
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet
from foveal.serve.loaded import Loaded, Source, open_source

pytestmark = pytest.mark.anyio
PICTURE = base64.b64encode(encoded(pixels(0))).decode()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(7):
        Image.fromarray(pixels(number)).save(tmp_path / f"photos/{number}.png")
    return tmp_path / "photos"


def store_of(photos: Path, tokens: tuple[str, ...]) -> FeatureStore:
    folder = photos.with_name("store")
    settings = StoreSettings(tokens=tokens, size=35, fit="resize")  # not as the model prepares by itself
    open_extraction(folder, tiny_model(), ImageSet.open(photos), settings).run()
    return FeatureStore.open(folder)


@pytest.mark.parametrize("tokens", [("cls",), ("mean",)])
async def test_neighbours_are_those_of_the_search(photos: Path, tokens: tuple[str, ...]) -> None:
    store = store_of(photos, tokens)
    expected = search_store(store, [photos / "3.png", photos / "5.png"], model=tiny_model(), k=4)
    files = [("image", (photos / f"{number}.png").read_bytes()) for number in (3, 5)]
    async with served(Loaded("tiny", tiny_model(), store=store)) as (client, _):
        answer = await client.post("/v1/search", files=files, data={"k": "4"})
        assert answer.status_code == 200, answer.text
        many = await client.post("/v1/search", json={"images": PICTURE, "k": 1000})
        document = (await client.get("/openapi.json")).json()
        example = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert (await client.post("/v1/search", json=example)).status_code == 200
    found = [one["neighbours"] for one in answer.json()["data"]]
    assert [[one["uri"] for one in query] for query in found] == expected.uris
    assert [[one["row"] for one in query] for query in found] == expected.rows.tolist()
    similarities = [[one["similarity"] for one in query] for query in found]
    np.testing.assert_allclose(similarities, expected.similarities, atol=1e-5)
    assert [query[0]["uri"] for query in found] == ["3.png", "5.png"]
    assert answer.json()["num_images"] == 7
    assert len(many.json()["data"][0]["neighbours"]) == 7


async def test_what_is_wrong_with_a_search_is_said(photos: Path) -> None:
    async with served() as (client, _):
        none = await client.post("/v1/search", json={"images": PICTURE})
    assert (none.status_code, none.json()["error"]["code"]) == (404, "store_not_found")
    async with served(Loaded("tiny", tiny_model(), store=store_of(photos, ("cls",)))) as (client, _):
        zero = await client.post("/v1/search", json={"images": PICTURE, "k": 0})
        cut = await client.post("/v1/search", content=encoded(pixels(0))[:60], headers={"content-type": "image/png"})
    assert (zero.status_code, zero.json()["error"]["field"]) == (422, "k")
    assert (cut.status_code, cut.json()["error"]["field"]) == (422, "images.0")


def test_a_store_without_vectors_is_refused_at_the_start(photos: Path, tmp_path: Path) -> None:
    store_of(photos, ("patches",))
    model = write_model(tmp_path / "model", tiny_model())
    with pytest.raises(FovealError, match="holds patches, and a server searches cls or mean"):
        open_source(Source(str(model), store=tmp_path / "store"))
