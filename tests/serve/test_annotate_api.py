"""The endpoints of the page of annotation: labels, masks, proposals, undo, exports, and what they refuse."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from disks import no_file_above
from PIL import Image
from serving import tiny_model

from foveal.annotate.project import Project
from foveal.annotate.set_features import open_features
from foveal.errors import ProjectError
from foveal.features.extraction import open_extraction
from foveal.features.stamp import StoreSettings
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet
from foveal.serve.app import create_app
from foveal.serve.loaded import Loaded
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings
from foveal.serve.web.annotate import annotate_page
from foveal.serve.web.annotator import Annotator

pytestmark = pytest.mark.anyio
API = "/annotate/api"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, six red and six blue, each with a green square, and the store of their features."""
    folder = tmp_path_factory.mktemp("annotate")
    generator = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(12):
        pixels = generator.integers(0, 40, (40, 60, 3)).astype(np.uint8)
        pixels[..., 2 if number % 2 else 0] += 200
        pixels[10:30, 10:30] = (20, 220, 20)
        Image.fromarray(pixels).save(folder / f"pictures/{number:02d}.png")
    images = ImageSet.open(folder / "pictures")
    open_extraction(folder / "store", tiny_model(), images, StoreSettings()).run()
    return folder


@asynccontextmanager
async def page(made: Path, folder: Path, **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Project]]:
    model = tiny_model()
    if not folder.exists():
        Project.create(folder, ImageSet.open(made / "pictures"), key=b"key", model=model, **options).close()
    project = Project.open(folder, model=model)
    service = Service(Loaded("tiny", model), ServeSettings())
    app = create_app(service, [annotate_page(Annotator(project, service, FeatureStore.open(made / "store")))])
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client,
    ):
        yield client, project
    project.close()


class Window:
    """A browser's window: sends changes under names of their own."""

    def __init__(self, client: httpx.AsyncClient, name: str = "one") -> None:
        self.client, self.name, self.sent = client, name, 0

    async def change(self, *, request: str | None = None, **action: Any) -> httpx.Response:
        self.sent += 1
        body = {"client": self.name, "request": request or f"{self.name}-{self.sent:08d}", "action": action}
        return await self.client.post(f"{API}/write", json=body)

    async def done(self, **action: Any) -> dict[str, Any]:
        answer = await self.change(**action)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


SQUARE = {
    "kind": "box",
    "points": [[9.0, 9.0], [30.0, 30.0]],
    "positive": True,
    "radius": 0.0,
}
CLICK = {"kind": "point", "points": [[20.0, 20.0]], "positive": True, "radius": 0.0}


async def test_labels_are_kept_counted_and_taken_back(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="red")
        first = await window.done(act="label", image=0, class_name="red")
        assert (first["project"]["classes"][0]["num_annotations"], first["project"]["undo"]) == (
            1,
            "label 00.png 'red'",
        )
        undone = await window.done(act="undo")
        assert (undone["words"], project.labels().names) == ("label 00.png 'red'", ())
        await window.done(act="redo")
        assert project.labels().names == ("red",)
        [shown] = (await client.get(f"{API}/images/0")).json()["annotations"]
        assert (shown["class_name"], shown["state"], shown["kind"]) == ("red", "accepted", "label")


async def test_a_window_of_another_project_is_refused(made: Path, tmp_path: Path) -> None:
    keys = []
    for name in ("p", "q"):
        async with page(made, tmp_path / name) as (client, project):
            about = (await client.get(f"{API}/project", params={"client": "one"})).json()
            keys.append(about["key"])
            known = await client.get(f"{API}/pictures/0", params={"project": keys[-1]})
            assert known.status_code == 200
    assert keys[0] != keys[1]
    async with page(made, tmp_path / "q") as (client, project):
        change = {"client": "one", "request": "add-a-class", "action": {"act": "add_class", "name": "red"}}
        for method, path, body in (("POST", "write", change), ("GET", "pictures/0", None), ("GET", "next", None)):
            refused = await client.request(method, f"{API}/{path}", params={"project": keys[0]}, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "other_project")
        assert project.classes() == ()


async def test_a_change_sent_again_is_done_once(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="square")
        await window.done(act="add_class", name="square")
        again = {"act": "mask", "image": 1, "class_name": "square", "prompts": [CLICK], "request": "the-same-name"}
        one, two = await window.done(**again), await window.done(**again)
        assert one["revision"] == two["revision"]
        assert len(project.annotations("01.png")) == 1


async def test_a_change_of_classes_sent_again_is_not_done_after_it_was_taken_back(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="red", request="the-same-name")
        await window.done(act="undo")
        await window.done(act="add_class", name="red", request="the-same-name")
        assert project.classes() == ()


async def test_classes_are_merged(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        for name in ("red", "rot"):
            await window.done(act="add_class", name=name)
        await window.done(act="label", image=0, class_name="rot")
        merged = await window.done(act="merge_class", name="rot", into="red")
        assert [(one["id"], one["name"]) for one in merged["project"]["classes"]] == [(1, "red")]
        assert project.labels().names == ("red",)


async def test_prompts_make_the_mask_that_is_shown_kept_and_corrected(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="square")
        shown = await client.post(f"{API}/masks", json={"image": 1, "prompts": [CLICK]})
        pixels = np.asarray(Image.open(io.BytesIO(shown.content))) > 127
        assert pixels.shape == (40, 60)
        assert pixels[20, 20]
        written = await window.done(act="mask", image=1, class_name="square", prompts=[CLICK])
        [record] = project.annotations("01.png")
        assert record.annotation.mask is not None
        assert np.array_equal(record.annotation.mask.pixels(), pixels)
        stored = await client.get(f"{API}/masks/{record.annotation.id}")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored.content))) > 127, pixels)
        away = {**CLICK, "points": [[50.0, 5.0]], "positive": False}
        change = {"act": "mask", "image": 1, "class_name": "square", "prompts": [CLICK, away]}
        await window.done(**change, id=written["ids"][0], seen=record.revision)
        [corrected] = project.annotations("01.png")
        assert (corrected.annotation.id, len(corrected.prompts)) == (record.annotation.id, 2)
        assert corrected.annotation.mask is not None
        assert not corrected.annotation.mask.pixels()[5, 50]


async def test_two_windows_keep_both_versions(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        one, two = Window(client, "one"), Window(client, "two")
        for name in ("red", "blue"):
            await one.done(act="add_class", name=name)
        before = (await client.get(f"{API}/project", params={"client": "two"})).json()["revision"]
        await one.done(act="label", image=3, class_name="red", seen=0)
        changes = (await client.get(f"{API}/changes", params={"since": before})).json()
        assert (changes["images"], changes["everything"]) == ([3], False)
        refused = await two.done(act="label", image=3, class_name="blue", seen=0)
        [conflict] = refused["conflicts"]
        assert "both are kept" in conflict["words"]
        assert (conflict["stored"], conflict["wanted"]) == ("'red', accepted", "'blue', accepted")
        assert project.labels().names == ("red",)
        settled = await two.done(act="settle", conflict=conflict["id"], take="wanted")
        assert (project.labels().names, settled["project"]["conflicts"]) == (("blue",), [])


async def test_the_head_learns_asks_for_the_rest_and_proposes_with_doubt(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p", held_out_share=0.4) as (client, project):
        window = Window(client)
        for name in ("red", "blue"):
            await window.done(act="add_class", name=name)
        nothing = await propose(client, "propose-1", what="labels")
        assert "label images of two classes" in nothing.json()["error"]["message"]
        asked = []
        for _ in range(8):
            found = (await client.get(f"{API}/next")).json()
            index = found["image"]["index"]
            asked.append(index)
            await window.done(act="label", image=index, class_name="blue" if index % 2 else "red")
        assert len(set(asked)) == 8
        found = (await client.get(f"{API}/next")).json()
        last = found["learning"]["history"][-1]
        assert last["held_out"] == found["learning"]["num_held_out"] >= 1
        assert found["guess"]["class_name"] == ("blue" if found["image"]["index"] % 2 else "red")
        made_up = (await propose(client, "propose-2", what="labels")).json()
        assert (made_up["num_proposed"], made_up["num_unsure"]) == (0, 4)  # so few held-out labels show nothing
        unsure = (await client.get(f"{API}/annotations", params={"state": "unsure"})).json()
        assert unsure["total"] == 4
        pairs = [[one["id"], one["revision"]] for one in unsure["annotations"]]
        await window.done(act="judge", annotations=pairs[:3], state="accepted")
        await window.done(act="judge", annotations=pairs[3:], state="rejected")
        assert len(project.labels().names) == 11
        truth = ["blue" if index % 2 else "red" for index in project.labels().index]
        assert list(project.labels().names) == truth


def test_a_project_without_a_model_keeps_the_first(made: Path, tmp_path: Path) -> None:
    model = tiny_model()
    with Project.create(tmp_path / "p", ImageSet.open(made / "pictures")) as project:
        open_features(project, model, made / "store")
    with pytest.raises(ProjectError, match=r"was made with the model tiny .*, and this is tiny"):
        Project.open(tmp_path / "p", model=tiny_model(1))
    Project.open(tmp_path / "p", model=model).close()


async def test_what_was_kept_is_there_after_the_server_is_started_again(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, _):
        window = Window(client)
        await window.done(act="add_class", name="red")
        await window.done(act="label", image=2, class_name="red")
    async with page(made, tmp_path / "p") as (client, project):
        assert project.labels().names == ("red",)
        undone = await Window(client).change(act="undo", request="another-name")
        assert undone.json()["words"] == "label 02.png 'red'"


async def test_pictures_are_jpeg_of_the_size_asked_for(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, _):
        answer = await client.get(f"{API}/pictures/0", params={"side": "160"})
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (60, 40)


@pytest.mark.parametrize(
    ("action", "status", "words"),
    [
        ({"act": "label", "image": 99, "class_name": "red"}, 404, "no such image; the project has 12"),
        ({"act": "label", "image": 0, "class_name": "rod"}, 422, "no class 'rod'"),
        ({"act": "mask", "image": 0, "class_name": "red", "prompts": []}, 422, "at least 1"),
        (
            {"act": "mask", "image": 0, "class_name": "red", "prompts": [{**CLICK, "points": [[70.0, 5.0]]}]},
            422,
            "outside the picture of 60 x 40",
        ),
        ({"act": "judge", "annotations": [[7, 1]], "state": "accepted"}, 409, "a proposal is gone"),
        ({"act": "erase"}, 422, "act"),
        ({"act": "settle", "conflict": 5, "take": "stored"}, 422, "no conflict 5"),
    ],
)
async def test_what_cannot_be_is_refused_in_words(
    made: Path, tmp_path: Path, action: dict[str, Any], status: int, words: str
) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="red")
        revision = project.revision
        answer = await window.change(**action)
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]
        assert project.revision == revision


@pytest.mark.parametrize("name", ["../out", "a/b", "..", ".hidden", "/etc/x", "", "a" * 65])
async def test_exports_stay_in_the_project(made: Path, tmp_path: Path, name: str) -> None:
    async with page(made, tmp_path / "p") as (client, _):
        answer = await client.post(f"{API}/export", json={"name": name, "format": "coco"})
        assert answer.status_code == 422
        assert not (tmp_path / "p/exports").exists()


def own_pictures(made: Path, folder: Path) -> Path:
    """Copy the pictures, and make a project of the copies."""
    (folder / "own").mkdir()
    for path in (made / "pictures").iterdir():
        (folder / "own" / path.name).write_bytes(path.read_bytes())
    Project.create(folder / "p", ImageSet.open(folder / "own"), model=tiny_model()).close()
    return folder / "own"


async def test_masks_of_long_strips_and_of_changed_files_are_of_what_is_there(made: Path, tmp_path: Path) -> None:
    own = own_pictures(made, tmp_path)
    Image.new("RGB", (4000, 4)).save(own / "00.png")
    async with page(made, tmp_path / "p") as (client, _):
        strip = await client.post(f"{API}/masks", json={"image": 0, "prompts": [{**CLICK, "points": [[9.0, 2.0]]}]})
        assert strip.status_code == 200, strip.text
        asked = {"image": 1, "prompts": [CLICK]}
        first = (await client.post(f"{API}/masks", json=asked)).content
        pixels = np.asarray(Image.open(own / "01.png"))
        Image.fromarray(np.roll(pixels, 30, axis=1)).save(own / "01.png")  # the click is beside the square now
        assert (await client.post(f"{API}/masks", json=asked)).content != first
        (own / "01.png").unlink()
        assert (await client.post(f"{API}/masks", json=asked)).status_code == 422


async def test_large_pictures_of_the_person_are_shown(made: Path, tmp_path: Path) -> None:
    own = own_pictures(made, tmp_path)
    Image.new("L", (6000, 4200)).save(own / "00.png")
    async with page(made, tmp_path / "p") as (client, _):
        assert (await client.get(f"{API}/pictures/0")).status_code == 200


async def test_an_image_that_is_gone_is_said_and_its_labels_stay(made: Path, tmp_path: Path) -> None:
    own = own_pictures(made, tmp_path)
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="red")
        await window.done(act="label", image=0, class_name="red")
        (own / "00.png").unlink()
        answer = await client.get(f"{API}/pictures/0")
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unreadable")
        shown = (await client.get(f"{API}/images/0")).json()
        assert (shown["width"], [one["class_name"] for one in shown["annotations"]]) == (None, ["red"])
        assert project.labels().names == ("red",)


async def propose(client: httpx.AsyncClient, request: str, **wanted: Any) -> httpx.Response:
    asked = {"client": "one", "request": request, "wanted": wanted}
    while (answer := await client.post(f"{API}/propose", json=asked)).status_code == 202:
        assert set(answer.json()) == {"looking"}
    return answer


async def test_masks_are_found_in_similar_images_and_what_is_decided_stays(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="square")
        early = await propose(client, "propose-0", what="similar", class_name="square", count=5)
        assert "no mask of 'square' is accepted yet" in early.json()["error"]["message"]
        for index in range(4):
            await window.done(act="mask", image=index, class_name="square", prompts=[SQUARE])
        found = (await propose(client, "propose-1", what="similar", class_name="square", count=5)).json()
        assert (found["num_proposed"], found["num_unsure"]) == (0, 5)
        assert "4 held-out answers" in found["summary"]
        records = project.annotations(class_name="square", states=["unsure"])
        truth = np.zeros((40, 60), bool)
        truth[10:30, 10:30] = True
        for record in records:
            assert record.annotation.mask is not None
            pixels = record.annotation.mask.pixels()
            assert (pixels & truth).sum() / (pixels | truth).sum() > 0.5
        rejected, kept = records[0], records[1]
        await window.done(act="judge", annotations=[[rejected.annotation.id, rejected.revision]], state="rejected")
        await window.done(act="judge", annotations=[[kept.annotation.id, kept.revision]], state="accepted")
        again = (await propose(client, "propose-2", what="similar", class_name="square", count=12)).json()
        undecided = project.annotations(class_name="square", states=["unsure", "proposed"])
        assert len(undecided) == again["num_unsure"] + again["num_proposed"] == 12 - 4 - 2
        assert not {rejected.index, kept.index} & {one.index for one in undecided}


async def test_long_work_outlasts_the_request_that_began_it(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="square")
        await window.done(act="mask", image=0, class_name="square", prompts=[SQUARE])
        asked = asyncio.create_task(propose(client, "propose-1", what="similar", class_name="square", count=5))
        await asyncio.sleep(0.01)
        asked.cancel()  # the window is closed, or its time is over
        async with asyncio.timeout(30):
            while len(project.annotations(states=["unsure"])) < 5:
                await asyncio.sleep(0.01)
        again = (await propose(client, "propose-1", what="similar", class_name="square", count=5)).json()
        assert again["num_unsure"] == 5
        assert len(project.annotations(states=["unsure"])) == 5


async def test_a_mask_is_followed_through_the_frames_after_it(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="square")
        await window.done(act="mask", image=8, class_name="square", prompts=[SQUARE])
        found = (await propose(client, "propose-1", what="video", class_name="square", image=3)).json()
        assert found["num_unsure"] == 3
        followed = project.annotations(track="square")
        assert [one.index for one in followed] == [9, 10, 11]


async def test_a_masked_image_that_has_changed_is_named(made: Path, tmp_path: Path) -> None:
    own = own_pictures(made, tmp_path)
    async with page(made, tmp_path / "p") as (client, _):
        window = Window(client)
        await window.done(act="add_class", name="square")
        await window.done(act="mask", image=0, class_name="square", prompts=[SQUARE])
    Image.new("RGB", (50, 44)).save(own / "00.png")
    async with page(made, tmp_path / "p") as (client, project):
        answer = await propose(client, "propose-1", what="similar", class_name="square", count=5)
        assert "00.png has 50 x 44 pixels, and its mask 60 x 40" in answer.json()["error"]["message"]
        assert len(project.annotations("00.png")) == 1


async def test_one_image_that_is_too_large_does_not_stop_the_others(made: Path, tmp_path: Path) -> None:
    own = own_pictures(made, tmp_path)
    Image.new("1", (10_001, 10_000)).save(own / "03.png")
    async with page(made, tmp_path / "p") as (client, _):
        window = Window(client)
        await window.done(act="add_class", name="square")
        await window.done(act="mask", image=0, class_name="square", prompts=[SQUARE])
        found = (await propose(client, "propose-1", what="similar", class_name="square", count=12)).json()
        assert "1 could not be read" in found["summary"]
        assert found["num_unsure"] >= 8


async def test_exports_are_written_once_and_image_sets_among_them(made: Path, tmp_path: Path) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="red")
        await window.done(act="label", image=4, class_name="red")
        written = await client.post(f"{API}/export", json={"name": "set", "format": "image set of labels"})
        assert written.status_code == 200, written.text
        saved = ImageSet.open(project.folder / "exports/set")
        assert saved.rows.column("label").to_pylist() == ["red"]
        for format in ("image set of labels", "coco"):
            again = await client.post(f"{API}/export", json={"name": "set", "format": format})
            assert again.status_code == 422
            assert "exports/set" in again.json()["error"]["message"]
        unknown = await client.post(f"{API}/export", json={"name": "other", "format": "cocoa"})
        assert "did you mean" in unknown.json()["error"]["message"]


async def test_a_change_that_a_full_disk_refuses_is_kept_by_the_window_and_done_later(
    made: Path, tmp_path: Path
) -> None:
    async with page(made, tmp_path / "p") as (client, project):
        window = Window(client)
        await window.done(act="add_class", name="red")
        change = {"act": "label", "image": 0, "class_name": "red", "request": "the-same-name"}
        with no_file_above(1):
            refused = await window.change(**change)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_written")
        assert "this change is not kept, all before it are" in refused.json()["error"]["message"]
        await window.done(**change)
        assert project.labels().names == ("red",)
