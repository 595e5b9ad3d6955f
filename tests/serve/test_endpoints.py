"""Embeddings and features over HTTP are those of the model itself, and what is wrong is said in JSON."""

import asyncio
import base64
import io

import numpy as np
import pytest
import torch
from serving import encoded, pixels, served, tiny_model

from foveal.backbone.vit import VisionTransformer
from foveal.engine.base import Engine
from foveal.engine.calibrate import quantise_all
from foveal.engine.cpu import this_cpu
from foveal.engine.openvino_engine import OpenVINOEngine
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.features.pca import patch_colours
from foveal.serve.loaded import Loaded
from foveal.serve.openapi import TINY_PNG

pytestmark = pytest.mark.anyio
PICTURES = [pixels(number, *size) for number, size in enumerate([(33, 51), (40, 29), (28, 28)])]
BASE64 = [base64.b64encode(encoded(picture)).decode() for picture in PICTURES]


def npy(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)


async def test_embeddings_are_the_class_tokens_of_extract(model: Model) -> None:
    expected = model.extract(PICTURES).cls.numpy()
    data_url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64[1]}"}}
    async with served(Loaded("tiny", model)) as (client, _):
        answer = await client.post(
            "/v1/embeddings", json={"model": "tiny", "input": [BASE64[0], data_url, {"image": BASE64[2]}]}
        )
        one = await client.post("/v1/embeddings", json={"input": BASE64[1], "encoding_format": "base64"})
        unit = await client.post("/v1/embeddings", json={"input": BASE64[1], "normalize": True})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"] == "tiny"
    assert [row["index"] for row in body["data"]] == [0, 1, 2]
    np.testing.assert_allclose([row["embedding"] for row in body["data"]], expected, atol=1e-5)
    decoded = np.frombuffer(base64.b64decode(one.json()["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, expected[1], atol=1e-5)
    vector = expected[1] / np.linalg.norm(expected[1])
    np.testing.assert_allclose(unit.json()["data"][0]["embedding"], vector, atol=1e-5)


async def test_forms_and_bare_images_give_the_same(model: Model) -> None:
    files = [("image", (f"{number}.png", encoded(picture))) for number, picture in enumerate(PICTURES[:2])]
    async with served(Loaded("tiny", model)) as (client, _):
        form = await client.post("/v1/embeddings", files=files, data={"model": "tiny"})
        bare = await client.post("/v1/embeddings", content=encoded(PICTURES[1]), headers={"content-type": "image/png"})
    found = [row["embedding"] for row in form.json()["data"]]
    np.testing.assert_allclose(found, model.extract(PICTURES[:2]).cls.numpy(), atol=1e-5)
    np.testing.assert_allclose(bare.json()["data"][0]["embedding"], found[1], atol=1e-6)


async def test_features_in_json_and_npy(model: Model) -> None:
    expected = model.extract(PICTURES[0], fit="resize")
    request = {"images": BASE64[0], "tokens": ["cls", "registers", "patches", "mean", "pca"], "fit": "resize"}
    async with served(Loaded("tiny", model)) as (client, _):
        answer = (await client.post("/v1/features", json=request)).json()["data"][0]
        one = await client.post(
            "/v1/features", json={**request, "tokens": "patches"}, headers={"accept": "application/x-npy"}
        )
        several = await client.post("/v1/features", json=request, headers={"accept": "application/x-npz"})
    for name, values in {"cls": expected.cls, "registers": expected.registers, "patches": expected.patches}.items():
        np.testing.assert_allclose(answer[name], values[0], atol=1e-5)
    assert answer["grid"] == list(expected.patches.shape[1:3])
    np.testing.assert_allclose(answer["mean"], expected.patches.mean(dim=(0, 1, 2)), atol=1e-5)
    np.testing.assert_array_equal(answer["pca"], patch_colours(expected.patches)[0])
    assert one.headers["content-type"] == "application/x-npy"
    np.testing.assert_allclose(npy(one.content), expected.patches, atol=1e-5)
    arrays = np.load(io.BytesIO(several.content), allow_pickle=False)
    assert sorted(arrays) == ["cls", "mean", "patches", "pca", "registers"]
    np.testing.assert_allclose(arrays["registers"], expected.registers, atol=1e-5)


def engine_of(kind: str, backbone: VisionTransformer) -> Engine:
    """An engine whose batches might have differed from single images."""
    name, precision = kind.split()
    if name == "torch":
        return TorchEngine(backbone, precision=precision)
    pytest.importorskip("openvino", reason="OpenVINO is not installed (extra cpu)")
    cpu = this_cpu()
    if precision == "bf16" and not cpu.bf16:
        pytest.skip("this processor has no bf16 instructions: OpenVINO would compute in fp32")
    if precision != "int8":
        return OpenVINOEngine(backbone, precision=precision)
    images = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    layers, _ = quantise_all(backbone, images, max_integer=cpu.max_integer)
    return OpenVINOEngine(backbone, precision="bf16" if cpu.bf16 else "fp32", quantised=layers, calibration="here")


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("torch fp32", 1 - 1e-6),
        ("torch bf16", 0.9999),
        ("openvino fp32", 1 - 1e-6),
        ("openvino bf16", 0.9999),
        ("openvino int8", 0.9999),
    ],
)
async def test_a_batch_changes_no_answer_and_mixes_none_up(kind: str, least: float, model: Model) -> None:
    engine = engine_of(kind, model.engine.backbone)
    pictures = [pixels(number, *((33, 51), (29, 44), (60, 31))[number % 3]) for number in range(48)]
    alone = Model(engine, model.card)

    async with served(Loaded("tiny", alone), max_wait_ms=20) as (client, service):

        async def ask(picture: np.ndarray) -> np.ndarray:
            answer = await client.post(
                "/v1/features?tokens=patches&fit=resize",
                content=encoded(picture),
                headers={"content-type": "image/png", "accept": "application/x-npy"},
            )
            return npy(answer.content)[0]

        together = await asyncio.gather(*map(ask, pictures))
        batches = service.metrics.registry.get_sample_value("foveal_batch_images_count")
    assert batches is not None
    assert batches < 24
    for found, picture in zip(together, pictures, strict=True):
        expected = alone.extract(picture, fit="resize").patches[0]
        cosine = torch.cosine_similarity(torch.from_numpy(found).double(), expected.double(), dim=-1)
        assert float(cosine.min()) >= least


async def test_models_health_and_metrics() -> None:
    async with served(Loaded("tiny", tiny_model())) as (client, service):
        await client.post("/v1/embeddings", json={"input": TINY_PNG})
        models = (await client.get("/v1/models")).json()["data"]
        live, ready = await client.get("/health/live"), await client.get("/health/ready")
        service.admission.is_draining = True
        draining = await client.get("/health/ready")
        refused = await client.post("/v1/embeddings", json={"input": TINY_PNG})
        still_live = await client.get("/health/live")
        metrics = (await client.get("/metrics")).text
    assert [(one["id"], one["width"], one["num_registers"]) for one in models] == [("tiny", 48, 2)]
    assert [one.status_code for one in (live, ready, draining, still_live, refused)] == [200, 200, 503, 200, 503]
    assert draining.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "stopping"
    assert 'foveal_requests_total{route="/v1/embeddings",status="200"} 1.0' in metrics
    assert 'foveal_rejections_total{code="stopping"} 1.0' in metrics
    assert "foveal_batch_images_count 1.0" in metrics


async def test_examples_of_the_documentation_run() -> None:
    async with served() as (client, _):
        document = (await client.get("/openapi.json")).json()
        ran = 0
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                content = operation.get("requestBody", {}).get("content", {}).get("application/json")
                # Heads and the search have their examples tried in tests of their own.
                if content is None or path.startswith(("/v1/admin", "/v1/search")) or "{name}" in path:
                    continue
                address = path.replace("{model_name}", "ensemble").replace("{model_version}", "1")
                answer = await client.request(method, address, json=content["example"])
                assert answer.status_code == 200, (path, answer.text)
                ran += 1
    assert ran >= 2
    assert "EmbeddingsRequest" in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "request_", "status", "code", "field"),
    [
        ("/v1/embeddings", {"content": b"{"}, 400, "invalid_json", None),
        ("/v1/embeddings", {"json": {}}, 422, "invalid_value", "input"),
        ("/v1/embeddings", {"json": {"input": []}}, 422, "no_images", "input"),
        ("/v1/embeddings", {"json": {"input": "???"}}, 422, "invalid_base64", "input.0"),
        ("/v1/embeddings", {"json": {"input": ["data:image/png,x"]}}, 422, "invalid_base64", "input.0"),
        ("/v1/embeddings", {"json": {"input": [BASE64[0], "AAAA"]}}, 422, "unknown_format", "input.1"),
        ("/v1/embeddings", {"json": {"input": BASE64[0][:400]}}, 422, "truncated", "input.0"),
        ("/v1/embeddings", {"json": {"input": "https://example.com/a.png"}}, 422, "urls_not_allowed", "input.0"),
        ("/v1/embeddings", {"json": {"input": BASE64[0], "model": "tini"}}, 404, "model_not_found", "model"),
        ("/v1/embeddings", {"json": {"input": BASE64[0], "dimension": 4}}, 422, "invalid_value", "dimension"),
        ("/v1/embeddings", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type",
         "Content-Type"),
        ("/v1/embeddings", {"data": {"model": "tiny"}, "files": {"other": b"x"}}, 422, "invalid_form", "other"),
        ("/v1/features", {"json": {"images": BASE64[0], "tokens": ["cls", "cls"]}}, 422, "invalid_value", "tokens"),
        ("/v1/features", {"json": {"images": BASE64[0], "tokens": ["clss"]}}, 422, "invalid_value", "tokens.0"),
        ("/v1/features", {"json": {"images": BASE64[0], "size": 27}}, 422, "invalid_value", "size"),
        ("/v1/features", {"json": {"images": BASE64[0], "size": "28"}}, 422, "invalid_value", "size"),
        ("/v1/features", {"json": {"images": BASE64[0], "fit": "stretch"}}, 422, "invalid_value", "fit"),
        ("/v1/features", {"json": {"images": BASE64[0], "tokens": ["cls", "mean"]},
                          "headers": {"accept": "application/x-npy"}}, 422, "invalid_value", "tokens"),
        ("/v1/nothing", {"json": {}}, 404, "not_found", None),
        ("/health/live", {"json": {}}, 405, "method_not_allowed", None),
        ("/v1/admin/swap", {"json": {}}, 403, "admin_disabled", None),
        ("/v1/embeddings", {"json": {"input": BASE64[0]}, "headers": {"x-timeout-s": "-1"}}, 400, "invalid_timeout",
         "X-Timeout-S"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_said(path: str, request_: dict, status: int, code: str, field: str | None) -> None:
    async with served() as (client, _):
        answer = await client.post(path, **request_)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == (code, field)
    assert error["message"]
    assert BASE64[0][:40] not in answer.text
