"""Label Studio's protocol over a project: answers worth giving, none that are not, and labels that come back."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
        assert "labels: 38 held-out answers, and a precision of 95 % can be shown by 99 at least" in caplog.text
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
            results = [result_of(one, image, place) for place, one in enumerate(said)]
            content = {"task": task("red/19.png"), "annotation": {"id": 3, "result": results}, "project": {"id": 1}}
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
        assert {one.annotation.mask for one in project.annotations("red/19.png")} == {None, smaller.mask}
        assert (await say("START_TRAINING")).status_code == 201
        twice = await say("ANNOTATION_CREATED", label, Annotation("red/19.png", "red"))
        assert twice.status_code == 422
        assert "a project has one an image" in twice.json()["error"]["message"]


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
        ("/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 3}]}, 201, '"num_taken":0'),
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
