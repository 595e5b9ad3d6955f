"""Label Studio's protocol over a project: answers worth giving, none that are not, and labels that come back."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import tiny_model

from foveal.annotate.adapters.label_studio import LabelStudioBackend
from foveal.annotate.adapters.taught import Taught
from foveal.annotate.formats.label_studio import label_config, result_of
from foveal.annotate.formats.label_studio_brush import decode_brush
from foveal.annotate.project import Project
from foveal.annotate.records import Edit
from foveal.annotate.set_features import open_features
from foveal.annotate.types import AnnotatedImage, Annotation, Mask
from foveal.errors import FovealError
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet
from foveal.serve.app import create_app
from foveal.serve.label_studio import label_studio_page
from foveal.serve.loaded import Loaded
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings

pytestmark = pytest.mark.anyio
TOKEN = "a-token-of-twenty-chars"
COLOURS = {"red": (230, 20, 30), "blue": (20, 30, 220)}
SIZE = (42, 35)
CONFIG = label_config(("red", "blue")).decode()
PER_REGION = "<View><Choices name='c' toName='i' perRegion='true'><Choice value='red'/></Choices></View>"


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture
def project(tmp_path: Path, model: Model) -> Project:
    """Twenty pictures of each colour, all but the last of each labelled; all of them measure, too."""
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(20):
            noise = generator.integers(-15, 16, (*SIZE[::-1], 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    project = Project.create(tmp_path / "project", ImageSet.open(folder), model=model, held_out_share=0.99, key=b"k")
    for name in COLOURS:
        project.add_class(name)
        project.write([Edit(Annotation(f"{name}/{number:02d}.png", name)) for number in range(19)])
    return project


@asynccontextmanager
async def backend(project: Project, model: Model, *, precision: float = 0.7) -> AsyncIterator[httpx.AsyncClient]:
    taught = Taught(project, model, open_features(project, model), precision=precision)
    service = Service(Loaded("tiny", model), ServeSettings(api_keys=(TOKEN,)))
    app = create_app(service, [label_studio_page(LabelStudioBackend(taught), service)])
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://127.0.0.1:9090/label-studio",
            auth=("foveal", TOKEN),
        ) as client,
    ):
        yield client


def task(uri: str, number: int = 1) -> dict[str, Any]:
    return {"id": number, "data": {"image": f"/data/local-files/?d=pictures/{uri}"}}


async def predictions(client: httpx.AsyncClient, *uris: str, config: str = CONFIG) -> list[dict[str, Any]]:
    answer = await client.post("/predict", json={"tasks": [task(uri) for uri in uris], "label_config": config})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


async def click(client: httpx.AsyncClient, uri: str, *results: dict[str, Any]) -> httpx.Response:
    params = {"login": "", "password": "", "context": {"result": list(results)}}
    return await client.post("/predict", json={"tasks": [task(uri)], "label_config": CONFIG, "params": params})


async def test_sure_answers_are_given_and_unsure_ones_are_a_low_score(
    project: Project, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "foveal.annotate")
    async with backend(project, model) as client:
        assert (await client.get("/health")).json()["status"] == "UP"
        ready = await client.post("/setup", json={"project": "1.7", "schema": CONFIG, "access_token": "x"})
        assert ready.json() == {"model_version": f"foveal-{project.revision}"}
        red, blue, unknown = await predictions(client, "red/19.png", "blue/19.png", "elsewhere.png")
        assert [one["result"][0]["value"]["choices"] for one in (red, blue)] == [["red"], ["blue"]]
        assert red["result"][0]["from_name"] == "label"
        assert min(red["score"], blue["score"]) > 0.7
        assert (unknown["result"], unknown["score"]) == ([], 0.0)
    async with backend(project, model, precision=0.95) as client:  # more than so few held-out labels can show
        (unsure,) = await predictions(client, "red/19.png")
        assert unsure["result"] == []
        assert 0 < unsure["score"] < 1
        assert "labels: 38 held-out answers are too few to show a precision of 95 %, which takes 99" in caplog.text
    async with backend(project, model) as client:  # a class that the interface does not have
        (other,) = await predictions(client, "red/19.png", config=label_config(("green",)).decode())
        assert other["result"] == []


async def test_any_picture_is_answered_as_the_same_one_of_the_project(project: Project, model: Model) -> None:
    taught = Taught(project, model, open_features(project, model), precision=0.7)
    ((found,), score) = taught.of_images(["red/19.png"])[0]
    path = project.image_set.root / "red/19.png"
    ((other,), other_score) = taught.of_picture(path, name="new")
    assert (found.class_name, other.class_name, other.image) == ("red", "red", "new")
    assert other_score == pytest.approx(score, abs=1e-3)  # the store has half floats
    assert taught.of_picture(path, labels=False) == ((), 0.0)


async def test_what_people_say_there_becomes_accepted_here(project: Project, model: Model) -> None:
    mask = np.zeros(SIZE[::-1], bool)
    mask[7:21, 7:28] = True
    image = AnnotatedImage("red/19.png", *SIZE)
    label, marked = Annotation("red/19.png", "green"), Annotation("red/19.png", "red", Mask.of(mask))
    async with backend(project, model) as client:

        async def say(action: str, *said: Annotation) -> httpx.Response:
            annotation = {"id": 3, "result": [result_of(one, image, place) for place, one in enumerate(said)]}
            content = {"task": task("red/19.png"), "annotation": annotation, "project": {"id": 1}}
            return await client.post("/webhook", json={"action": action, **content})

        before = project.revision
        assert (await say("ANNOTATION_CREATED", label, marked)).json()["num_taken"] == 2
        kept = [one.annotation for one in project.annotations("red/19.png")]
        assert {(one.class_name, one.mask, one.state) for one in kept} == {
            ("green", None, "accepted"),
            ("red", Mask.of(mask), "accepted"),
        }
        after = project.revision
        assert after > before
        await say("ANNOTATION_UPDATED", label, marked)  # the same again changes nothing
        assert len(project.annotations("red/19.png")) == 2
        smaller = Annotation("red/19.png", "red", Mask.of(mask & (np.arange(SIZE[0]) < 14)))
        await say("ANNOTATION_UPDATED", smaller)
        assert {one.annotation.mask for one in project.annotations("red/19.png")} == {smaller.mask}
        assert (await say("START_TRAINING")).status_code == 201
        twice = await say("ANNOTATION_CREATED", label, Annotation("red/19.png", "red"))
        assert twice.status_code == 422
        assert "a project has one an image" in twice.json()["error"]["message"]


async def test_what_is_changed_or_deleted_there_is_taken_back_here(project: Project, model: Model) -> None:
    """Annotation 3 says a label and two masks, changes its mind, and is deleted, as 1.23 of Label Studio tells it."""
    uri, mask, other = "red/19.png", np.zeros(SIZE[::-1], bool), np.zeros(SIZE[::-1], bool)
    mask[7:21, 7:28] = other[2:5, 2:9] = True
    own = Annotation(uri, "blue", Mask.of(other))
    project.write([Edit(own)])
    said = [Annotation(uri, "green"), Annotation(uri, "red", Mask.of(mask)), own]
    image = AnnotatedImage(uri, *SIZE)

    def there() -> set[tuple[str, Mask | None]]:
        return {(one.annotation.class_name, one.annotation.mask) for one in project.annotations(uri)}

    async with backend(project, model) as client:

        async def say(action: str, *said: Annotation, at: str, **more: Any) -> dict[str, Any]:
            results = [result_of(one, image, place) for place, one in enumerate(said)]
            annotation = {"id": 3, "updated_at": at, "result": results, **more}
            event = {"action": action, "project": {"id": 1}, "annotation": annotation, "task": task(uri)}
            found: dict[str, Any] = (await client.post("/webhook", json=event)).json()
            return found

        first = await say("ANNOTATION_CREATED", *said, at="10:00")
        assert (first["num_taken"], first["num_removed"], len(there())) == (3, 0, 3)
        changed = await say("ANNOTATION_UPDATED", said[1], at="10:01")
        assert changed["num_removed"] == 1
        assert there() == {("red", Mask.of(mask)), ("blue", Mask.of(other))}  # what was there before it stays
        await say("ANNOTATION_UPDATED", *said, at="10:02", was_cancelled=True)
        assert there() == {("blue", Mask.of(other))}
        await say("ANNOTATION_UPDATED", *said, at="10:03")
        (corrected,) = (one for one in project.annotations(uri) if one.annotation.class_name == "red")
        project.write([Edit(replace(corrected.annotation, class_name="blue"))])
    async with backend(project, model) as client:  # it is known what annotation 3 said, also after a new start
        gone = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 30}, {"id": 3}], "project": {"id": 1}}
        assert (await client.post("/webhook", json=gone)).json()["num_removed"] == 1
        assert there() == {("blue", Mask.of(mask)), ("blue", Mask.of(other))}  # so does what was corrected here since
        assert (await client.post("/webhook", json=gone)).json()["num_removed"] == 0


async def test_many_annotations_at_once_are_taken_but_for_those_that_are_refused(
    project: Project, model: Model
) -> None:
    """As Label Studio tells it when predictions are made annotations."""
    result = {"id": "a", "from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["red "]}}
    uris = ("elsewhere.png", "red/19.png", "blue/19.png")
    event = {
        "action": "ANNOTATIONS_CREATED",
        "annotation": [{"id": number, "result": [result]} for number in range(3)],
        "task": [task(uri, number) for number, uri in enumerate(uris)],
    }
    async with backend(project, model) as client:
        answer = await client.post("/webhook", json=event)
    assert answer.status_code == 422
    assert "task 0 is of a picture that the project does not have" in answer.text
    assert [project.annotations(uri)[0].annotation.class_name for uri in uris[1:]] == ["red", "red"]


async def test_an_event_is_taken_although_its_sender_goes_away_while_predictions_are_made(
    project: Project, model: Model
) -> None:
    """Label Studio waits for a second and does not come again."""
    taught = Taught(project, model, open_features(project, model), precision=0.7)
    service = Service(Loaded("tiny", model), ServeSettings(api_keys=(TOKEN,)))
    app = create_app(service, [label_studio_page(LabelStudioBackend(taught), service)])
    going = threading.Event()
    result = {"id": "a", "from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["red"]}}
    body = json.dumps(
        {"action": "ANNOTATION_CREATED", "annotation": {"id": 1, "result": [result]}, "task": task("red/19.png")}
    ).encode()
    headers = {"host": "127.0.0.1", "x-api-key": TOKEN, "content-type": "application/json"}
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "query_string": b"",
        "path": "/label-studio/webhook",
        "raw_path": b"",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(_: Any) -> None:
        pass

    async with app.router.lifespan_context(app):
        predicting = asyncio.ensure_future(service.searched(lambda: going.wait(60)))
        try:
            await app(scope, receive, send)
            for _ in range(500):
                if project.annotations("red/19.png"):
                    break
                await asyncio.sleep(0.02)
            assert [one.annotation.class_name for one in project.annotations("red/19.png")] == ["red"]
        finally:
            going.set()
            await predicting


async def test_a_picture_that_is_gone_costs_neither_the_answers_of_others_nor_what_others_teach(
    project: Project, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "foveal.annotate")
    mask = Mask.of(np.ones(SIZE[::-1], bool))
    project.write([Edit(Annotation(f"red/{number:02d}.png", "red", mask)) for number in range(3)])
    store = open_features(project, model)
    root = project.image_set.root
    (root / "red/00.png").unlink()
    Image.new("RGB", (30, 20)).save(root / "red/01.png")
    (root / "blue/00.png").unlink()
    taught = LabelStudioBackend(Taught(project, model, store, precision=0.7))
    gone, there = taught.predict([task("blue/00.png"), task("red/19.png")], CONFIG)
    assert (gone["result"], gone["score"]) == ([], 0.0)
    assert there["result"][0]["value"]["choices"] == ["red"]
    assert "its masks are not learnt from" in caplog.text
    assert "masks of red: no patch lies outside of the masks" in caplog.text
    assert "red/01.png: it is of another size than its masks" in caplog.text
    with pytest.raises(FovealError, match=r"blue/00\.png, which has annotations, cannot be read"):
        taught.predict([task("blue/00.png")], CONFIG)


async def test_masks_are_predicted_where_held_out_ones_show_that_they_can_be(tmp_path: Path, model: Model) -> None:
    folder, marks = tmp_path / "pictures", {}
    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(14):
        pixels = generator.integers(0, 60, (56, 56, 3)).astype(np.uint8)
        mask = np.zeros((56, 56), bool)
        top, left = generator.integers(0, 5, 2) * 7
        mask[top : top + 21, left : left + 21] = True
        pixels[mask] = np.clip(np.array(COLOURS["red"]) + generator.integers(-15, 16, (441, 3)), 0, 255)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        marks[f"{number:02d}.png"] = mask
    project = Project.create(tmp_path / "project", ImageSet.open(folder), model=model)
    project.add_class("red")
    project.write([Edit(Annotation(uri, "red", Mask.of(mask))) for uri, mask in list(marks.items())[:13]])
    config = CONFIG.replace("BrushLabels", "RectangleLabels").replace('name="box"', 'name="other"', 1)
    async with backend(project, model, precision=0.6) as client:
        (found,) = await predictions(client, "13.png")
        (brush,) = found["result"]
        assert brush["type"] == "brushlabels"
        painted = decode_brush(brush["value"]["rle"], 56, 56, where="")
        truth = marks["13.png"]
        assert (painted & truth).sum() / (painted | truth).sum() > 0.5
        (found,) = await predictions(client, "13.png", config=config)
        assert found["result"][0]["type"] == "rectanglelabels"
        rows, columns = np.nonzero(truth)
        point = {"x": columns.mean() / 56 * 100, "y": rows.mean() / 56 * 100, "keypointlabels": ["red"]}
        outside = {"x": 1, "y": 1, "keypointlabels": ["red"]}
        clicked = await click(client, "13.png", {"value": point}, {"value": outside, "is_positive": 0})
        (brush,) = clicked.json()["results"][0]["result"]
        painted = decode_brush(brush["value"]["rle"], 56, 56, where="")
        assert (painted & truth).sum() / (painted | truth).sum() > 0.5
        assert painted[int(rows.mean()), int(columns.mean())]
        again = await click(client, "13.png", {"value": point})
        assert again.json()["results"][0]["result"][0]["id"] != brush["id"]  # or the second would replace the first
        box = {"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["green"]}
        for results, words in (
            ([{"value": box}], "no BrushLabels with 'green'"),
            ([], "0 results"),
            ([{"value": {"x": 3}}], "no point or box with a label"),
            ([{"value": outside, "is_positive": False}], "nothing shows yet what is meant"),
        ):
            refused = await click(client, "13.png", *results)
            assert refused.status_code == 422
            assert words in refused.text


@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("/setup", {"schema": "<View><Text name='t' value='$t'/></View>"}, 422, "none of Choices"),
        ("/setup", {"schema": "<!DOCTYPE a><View/>"}, 422, "document type"),
        ("/predict", {"tasks": [{"id": 7, "data": {}}], "label_config": CONFIG}, 422, "task 7 names no picture"),
        ("/predict", {"tasks": [task("red/../../x.png")], "label_config": CONFIG}, 200, "score"),
        ("/predict", {"tasks": 3, "label_config": CONFIG}, 422, "valid array"),
        ("/webhook", {"action": "ANNOTATION_CREATED"}, 422, "no annotation"),
        ("/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 3}]}, 201, '"num_removed":0'),
        ("/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": [3]}, 422, "has no id"),
        ("/webhook", {"action": "ANNOTATIONS_CREATED", "annotation": [3], "task": [{}]}, 422, "that are none"),
        ("/setup", {"schema": PER_REGION}, 422, "none of Choices"),
    ],
)
async def test_odd_requests_are_answered_in_words(
    project: Project, model: Model, path: str, content: dict[str, Any], status: int, words: str
) -> None:
    async with backend(project, model) as client:
        answer = await client.post(path, json=content)
        assert answer.status_code == status, answer.text
        assert words in answer.text
        refused = await client.post(path, json=content, auth=("foveal", TOKEN + "x"))
        assert refused.status_code == 401
        client.auth = None
        odd = {"authorization": f"Basic {base64.b64encode(b'no colon').decode()}!"}
        assert (await client.post(path, json=content, headers=odd)).status_code == 401
