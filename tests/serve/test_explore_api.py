"""The endpoints of the explorer: pictures, heat maps, neighbours, colours, selections, and what they refuse."""

import asyncio
import io
import json
import shlex
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import encoded, pixels, tiny_model

from foveal.errors import FovealError
from foveal.features.extraction import open_extraction
from foveal.features.packing import cosines
from foveal.features.stamp import StoreSettings
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet
from foveal.serve.app import create_app
from foveal.serve.loaded import Loaded
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings
from foveal.serve.web.explore import explore_page
from foveal.serve.web.explorer import Explorer

pytestmark = pytest.mark.anyio
API = "/explore/api"
NUM_IMAGES = 9


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures in three classes, an interactive store of them, and one without patches."""
    folder = tmp_path_factory.mktemp("explore")
    for number in range(NUM_IMAGES):
        path = folder / f"pictures/{'abc'[number % 3]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number, 40, 60)).save(path)
    images, model = ImageSet.open(folder / "pictures"), tiny_model()
    settings = StoreSettings(tokens=("cls", "patches"), dtype="int8", pca=8)
    open_extraction(folder / "store", model, images, settings).run()
    open_extraction(folder / "plain", model, images, StoreSettings()).run()
    return folder


def explorer_of(store: Path, out: Path) -> Explorer:
    return Explorer(FeatureStore.open(store), Service(Loaded("tiny", tiny_model()), ServeSettings()), out)


@asynccontextmanager
async def page(store: Path, out: Path, explorer: Explorer | None = None) -> AsyncIterator[httpx.AsyncClient]:
    explorer = explorer or explorer_of(store, out)
    app = create_app(explorer.service, [explore_page(explorer)])
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client,
    ):
        yield client


@pytest.fixture
async def client(made: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with page(made / "store", tmp_path / "out") as found:
        yield found


def array(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    about = json.loads(answer.headers["x-foveal-array"])
    return np.frombuffer(answer.content, about["dtype"]).reshape(about["shape"])


async def test_what_there_is_and_its_pictures(client: httpx.AsyncClient) -> None:
    about = (await client.get(f"{API}/set")).json()
    assert about["images"] == NUM_IMAGES
    assert about["patches"] == {"grid": [4, 4], "components": 8}
    assert about["classes"] == ["a", "b", "c"]
    listed = (await client.get(f"{API}/images?start=7&count=5")).json()["images"]
    assert [(one["row"], one["uri"], one["label"]) for one in listed] == [(7, "c/5.png", "c"), (8, "c/8.png", "c")]
    assert (listed[0]["width"], listed[0]["height"]) == (60, 40)
    small = Image.open(io.BytesIO((await client.get(f"{API}/thumbnail/7")).content))
    # The model resizes 40 x 60 to 32 x 48 and sees the middle 28 x 28: 35 x 35 of the original's, rounded.
    assert (small.format, small.size) == ("JPEG", (36, 36))
    seen = pixels(5, 40, 60)[2:38, 12:48]
    assert np.abs(np.asarray(small, float).mean(axis=(0, 1)) - seen.mean(axis=(0, 1))).max() < 6
    assert (await client.get(f"{API}/picture/7?side=20")).headers["content-type"] == "image/jpeg"
    assert (await client.get(f"{API}/thumbnail/9")).status_code == 404
    assert (await client.get(f"{API}/thumbnail/..%2f..%2fetc")).status_code in (404, 422)


async def test_heat_and_finding_agree_with_whole_vectors(client: httpx.AsyncClient, made: Path) -> None:
    store = FeatureStore.open(made / "store")
    projection = store.projection("patches")
    assert projection is not None
    vectors = projection.invert(store.read("patches")).reshape(NUM_IMAGES, 16, -1)
    wanted = cosines(vectors, np.broadcast_to(vectors[4, 9], vectors.shape))
    heat = array(await client.post(f"{API}/heat", json={"row": 4, "patch": 9, "rows": [8, 4]}))
    np.testing.assert_allclose(heat.reshape(2, 16) / 127.5 - 1, wanted[[8, 4]], atol=0.005)
    found = (await client.post(f"{API}/find", json={"row": 4, "patch": 9, "count": 5})).json()["images"]
    assert [one["row"] for one in found] == np.argsort(-wanted.max(axis=1))[:5].tolist()
    assert (found[0]["row"], found[0]["patch"]) == (4, 9)
    np.testing.assert_allclose([one["score"] for one in found], np.sort(wanted.max(axis=1))[::-1][:5], atol=1e-4)


def is_measuring() -> bool:
    return any(thread.name == "measure" for thread in threading.enumerate())


async def measured(explorer: Explorer) -> int:
    """Wait until nothing is measured any more; return what is."""
    async with asyncio.timeout(20):
        while is_measuring():
            await asyncio.sleep(0.01)
    assert explorer.heat is not None
    return explorer.heat.num_measured


async def test_lengths_are_measured_ahead_while_nobody_asks(made: Path, tmp_path: Path) -> None:
    explorer = explorer_of(made / "store", tmp_path)
    admission = explorer.service.admission
    assert explorer.heat is not None
    explorer.heat._chunk = 2
    admission.requests = 1
    async with page(made / "store", tmp_path, explorer) as client:
        await asyncio.sleep(0.2)
        assert explorer.heat.num_measured <= 2  # it is looked after each chunk whether somebody waits
        assert (await client.post(f"{API}/heat", json={"row": 1, "patch": 2, "rows": [8]})).status_code == 200
        admission.requests = 0
        assert await measured(explorer) == NUM_IMAGES
    explorer = explorer_of(made / "store", tmp_path)
    explorer.service.admission.requests = 1
    async with page(made / "store", tmp_path, explorer):
        assert is_measuring()
    assert not is_measuring()  # it ends with the server


async def test_what_keeps_lengths_from_being_measured_is_said_by_the_search(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "store", tmp_path / "store")
    explorer = explorer_of(tmp_path / "store", tmp_path / "out")
    (tmp_path / "store/shards/00000/patches.npy").write_bytes(b"damaged")
    async with page(tmp_path / "store", tmp_path / "out", explorer) as client:
        assert await measured(explorer) == 0
        assert (await client.get(f"{API}/set")).status_code == 200
        found = await client.post(f"{API}/find", json={"row": 1, "patch": 2})
        assert found.status_code == 422
        assert "patches.npy cannot be read" in found.json()["error"]["message"]


async def test_neighbours_of_an_image_and_of_a_dropped_one(client: httpx.AsyncClient, made: Path) -> None:
    store = FeatureStore.open(made / "store")
    vectors = store.read("cls")
    ranked = np.argsort(-cosines(vectors, np.broadcast_to(vectors[3], vectors.shape)))
    found = (await client.get(f"{API}/neighbours?row=3&count=4")).json()["images"]
    assert [one["row"] for one in found] == ranked[1:5].tolist()
    data = (made / "pictures/b/1.png").read_bytes()  # row 3
    dropped = (await client.post(f"{API}/neighbours?count=3", content=data)).json()
    assert [one["row"] for one in dropped["images"]] == ranked[:3].tolist()
    assert dropped["grid"] == [4, 4]
    own = array(await client.post(f"{API}/heat", json={"row": 3, "patch": 5, "rows": [0, 3]}))
    other = array(await client.post(f"{API}/heat", json={"upload": dropped["upload"], "patch": 5, "rows": [0, 3]}))
    assert other[1].argmax() == own[1].argmax() == 5  # not the same numbers: this one's patches are whole


async def test_colours_and_the_map(client: httpx.AsyncClient, made: Path) -> None:
    values = FeatureStore.open(made / "store").read("patches").astype(np.float64)
    low, high = np.percentile(values.reshape(-1, 8), [1, 99], axis=0)
    colours = array(await client.get(f"{API}/pca/2?first=4"))
    wanted = 255 * np.clip((values[2] - low) / (high - low), 0, 1)[..., 4:7]
    np.testing.assert_allclose(colours, wanted, atol=1)
    assert (await client.get(f"{API}/pca/2?first=6")).json()["error"]["message"] == (
        "components from 6; there are 8, three at a time"
    )
    points = array(await client.get(f"{API}/map"))
    assert points.shape == (NUM_IMAGES, 2)
    assert (points.min(), points.max()) == (0, 1)
    vectors = FeatureStore.open(made / "store").read("cls").astype(np.float64)
    first = np.linalg.svd(vectors - vectors.mean(axis=0))[2][0]
    assert abs(np.corrcoef(points[:, 0], vectors @ first)[0, 1]) > 0.999


async def test_a_map_that_fails_is_said_and_may_be_asked_for_again(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is slow to start and optional: what stands here for it is only its place."""
    answers = [ValueError("no neighbours"), np.full((NUM_IMAGES, 2), 0.5, np.float32)]

    def made(_: Explorer) -> np.ndarray:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def asked() -> httpx.Response:
        while (answer := await client.get(f"{API}/map?method=umap")).status_code == 202:
            assert answer.json() == {"state": "computing"}
            await asyncio.sleep(0.01)
        return answer

    monkeypatch.setattr("foveal.serve.web.explore.has_umap", lambda: False)
    assert (await client.get(f"{API}/map?method=umap")).json()["error"]["code"] == "no_umap"
    monkeypatch.setattr("foveal.serve.web.explore.has_umap", lambda: True)
    monkeypatch.setattr(Explorer, "umap_map", property(made))
    failed = await asked()
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "umap_failed")
    assert "no neighbours" in failed.json()["error"]["message"]
    assert array(await asked()).shape == (NUM_IMAGES, 2)


async def test_a_selection_is_an_image_set(client: httpx.AsyncClient, made: Path, tmp_path: Path) -> None:
    asked = {"name": "mine", "rows": [8, 1, 1]}
    answer = (await client.post(f"{API}/selection", json=asked)).json()
    assert answer["images"] == 2
    saved = ImageSet.open(answer["path"])
    assert [saved.uri(index) for index in range(len(saved))] == ["a/3.png", "c/8.png"]
    assert saved.labels == ["a", "c"]
    np.testing.assert_array_equal(saved.decode(1), pixels(8, 40, 60))
    again = await client.post(f"{API}/selection", json=asked)
    assert again.status_code == 409
    assert "already exists" in again.json()["error"]["message"]
    for name in ("", ".", "..", "../x", "a/b", "a\\b", "/etc/x", "-x", "x\n", "x" * 65, "ä"):
        refused = await client.post(f"{API}/selection", json={"name": name, "rows": [1]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_name")
    assert (await client.post(f"{API}/selection", json={"name": "z", "rows": [99]})).status_code == 404
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


async def test_a_dropped_picture_is_shown_as_it_was_seen(client: httpx.AsyncClient) -> None:
    data = encoded(pixels(3, 40, 60))
    name = (await client.post(f"{API}/neighbours?count=3", content=data)).json()["upload"]
    shown = await client.get(f"{API}/upload/{name}")
    assert shown.headers["content-type"] == "image/jpeg"
    seen = Image.open(io.BytesIO(shown.content))
    assert seen.size == (36, 36)  # as of the set's own: see above
    assert (
        np.abs(np.asarray(seen, float).mean(axis=(0, 1)) - pixels(3, 40, 60)[2:38, 12:48].mean(axis=(0, 1))).max() < 6
    )
    gone = await client.get(f"{API}/upload/other")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "upload_gone")


async def test_pictures_have_the_proportions_of_their_patches(made: Path, tmp_path: Path) -> None:
    images, model = ImageSet.open(made / "pictures"), tiny_model()
    settings = StoreSettings(tokens=("cls", "patches"), size=(28, 56), fit="resize")  # of pictures of 40 x 60
    open_extraction(tmp_path / "store", model, images, settings).run()
    async with page(tmp_path / "store", tmp_path / "out") as client:
        assert (await client.get(f"{API}/set")).json()["patches"]["grid"] == [4, 8]
        assert Image.open(io.BytesIO((await client.get(f"{API}/picture/0")).content)).size == (60, 30)
        assert Image.open(io.BytesIO((await client.get(f"{API}/picture/0?side=16")).content)).size == (16, 8)


async def test_images_of_the_set_may_be_larger_than_those_that_requests_bring(made: Path, tmp_path: Path) -> None:
    service = Service(Loaded("tiny", tiny_model()), ServeSettings(max_pixels=2000, max_body_bytes=4000))
    explorer = Explorer(FeatureStore.open(made / "store"), service, tmp_path)
    async with page(made / "store", tmp_path, explorer) as client:
        assert (await client.get(f"{API}/picture/0")).status_code == 200  # 2400 pixels, 7 KB
        refused = await client.post(f"{API}/neighbours", content=encoded(np.zeros((40, 60, 3), np.uint8)))
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_pixels")
        assert (await client.get(f"{API}/set")).json()["most_bytes"] == 4000


async def test_another_model_in_the_place_of_the_stores_is_refused(made: Path, tmp_path: Path) -> None:
    explorer = explorer_of(made / "store", tmp_path)
    async with page(made / "store", tmp_path, explorer) as client:
        explorer.service.loaded = Loaded("other", tiny_model(5))  # as after SIGHUP
        answer = await client.post(f"{API}/neighbours", content=encoded(pixels(3)))
        assert answer.status_code == 422
        assert "holds features of the model" in answer.json()["error"]["message"]


async def test_the_scale_of_colours_is_made_once(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, model = ImageSet.open(made / "pictures"), tiny_model()
    open_extraction(tmp_path / "store", model, images, StoreSettings(tokens=("cls", "patches"))).run()
    explorer = explorer_of(tmp_path / "store", tmp_path)
    read, sizes = explorer.store.read, []
    monkeypatch.setattr(explorer.store, "read", lambda name, rows: sizes.append(len(rows)) or read(name, rows))
    async with page(tmp_path / "store", tmp_path, explorer) as client:
        found = await asyncio.gather(*(client.get(f"{API}/pca/{row}") for row in range(6)))
    assert {array(one).shape for one in found} == {(4, 4, 3)}
    assert sorted(sizes) == [1] * 6 + [NUM_IMAGES]


async def test_a_selection_that_cannot_be_written_is_said(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    async with page(made / "store", tmp_path / "out") as client:
        answer = await client.post(f"{API}/selection", json={"name": "mine", "rows": [1]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_saved")
        assert "check space and permissions" in answer.json()["error"]["message"]


async def test_the_command_for_a_selection_can_be_pasted(made: Path, tmp_path: Path) -> None:
    async with page(made / "store", tmp_path / "my out") as client:
        answer = (await client.post(f"{API}/selection", json={"name": "mine", "rows": [1]})).json()
    assert shlex.split(answer["command"])[4] == answer["path"]


async def test_what_is_wrong_is_said(client: httpx.AsyncClient) -> None:
    async def error(path: str, **body: object) -> tuple[int, str]:
        answer = await client.post(f"{API}/{path}", json=body)
        return answer.status_code, answer.json()["error"]["message"]

    assert await error("heat", patch=1, rows=[1]) == (422, "give row or upload, one of them")
    assert await error("heat", row=1, upload="x", patch=1, rows=[1]) == (422, "give row or upload, one of them")
    assert (await error("heat", row=1, patch=16, rows=[1]))[1].endswith("has 0 to 15")
    assert await error("heat", row=1, patch=1, rows=[9]) == (404, "image 9; there are 0 to 8")
    assert await error("find", upload="x", patch=1) == (404, "this picture is not kept any more; drop it again")
    assert (await error("heat", row=1, patch=1, rows=[0] * 1001))[0] == 422
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    assert (await client.post(f"{API}/neighbours", content=svg)).status_code in (415, 422)


async def test_images_gone_and_changed_since(client: httpx.AsyncClient, made: Path) -> None:
    path = made / "pictures/a/0.png"
    kept = path.read_bytes()
    try:
        path.write_bytes(encoded(pixels(77, 40, 60)))
        answer = await client.get(f"{API}/picture/0")
        assert answer.status_code == 410
        assert answer.json()["error"]["message"].startswith("a/0.png has changed since its features were made")
        path.unlink()
        assert (await client.get(f"{API}/picture/0")).status_code == 410
    finally:
        path.write_bytes(kept)


async def test_a_store_without_patches_still_shows_its_images(made: Path, tmp_path: Path) -> None:
    async with page(made / "plain", tmp_path / "out") as client:
        assert (await client.get(f"{API}/set")).json()["patches"] is None
        assert (await client.get(f"{API}/thumbnail/0")).status_code == 200
        assert len((await client.get(f"{API}/neighbours?row=0")).json()["images"]) == NUM_IMAGES - 1
        dropped = await client.post(f"{API}/neighbours", content=encoded(pixels(3)))
        assert dropped.json()["grid"] is None
        for answer in (
            await client.post(f"{API}/find", json={"row": 0, "patch": 0}),
            await client.post(f"{API}/find", json={"upload": dropped.json()["upload"], "patch": 0}),
            await client.post(f"{API}/heat", json={"upload": dropped.json()["upload"], "patch": 0, "rows": [0]}),
            await client.get(f"{API}/pca/0"),
        ):
            assert answer.status_code == 409
            assert "--tokens cls,patches --pca 64" in answer.json()["error"]["message"]


def test_a_store_of_another_model(made: Path, tmp_path: Path) -> None:
    service = Service(Loaded("other", tiny_model(5)), ServeSettings())
    with pytest.raises(FovealError, match="holds features of the model"):
        Explorer(FeatureStore.open(made / "store"), service, tmp_path)
