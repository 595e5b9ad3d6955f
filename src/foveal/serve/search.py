"""`/v1/search`: the images of a feature store that are most similar to pictures."""

from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from foveal.features.lookup import search_features, uris_of
from foveal.features.store import FeatureStore
from foveal.images.preprocess import Preprocess
from foveal.serve.inputs import ImageInputs, Part, read_request
from foveal.serve.loaded import check_searchable
from foveal.serve.openapi import TINY_PNG, body, problems
from foveal.serve.problems import Problem
from foveal.serve.service import Service


class SearchRequest(Part):
    """Pictures for which similar ones are wanted.

    Attributes:
        images: one image or several.
        k: so many for each, the most similar first; as many as there are in a smaller store.
    """

    images: ImageInputs = Field(union_mode="left_to_right")
    k: int = Field(default=10, ge=1, le=1000)


BODIES = (SearchRequest,)


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    found = APIRouter(tags=["search"])

    @found.post(
        "/v1/search",
        openapi_extra=body(SearchRequest, {"images": [TINY_PNG], "k": 3}, field="images"),
        responses=problems(),
        response_model=None,
    )
    async def search(request: Request) -> JSONResponse:
        """Return uris of the store and cosines; exact up to a million rows, beyond by its index where it has one."""
        loaded = service.loaded
        if loaded.store is None:
            raise Problem(404, "store_not_found", "no store is searched here; start the server with --store FOLDER")
        options, images = await read_request(request, service, SearchRequest, field="images")
        store, token = loaded.store, check_searchable(loaded.store)
        preprocess = Preprocess.from_stamp(store.stamp["preprocessing"])  # as the store's own images went through
        vectors = torch.from_numpy(await service.vectors(loaded, images, preprocess, token=token))
        data = await service.searched(lambda: _neighbours(store, vectors, token=token, k=min(options.k, len(store))))
        return JSONResponse({"model": loaded.name, "num_images": len(store), "data": data})

    return found


def _neighbours(store: FeatureStore, vectors: torch.Tensor, *, token: str, k: int) -> list[dict[str, Any]]:
    found, _ = search_features(store, vectors, k=k, name=token)
    uris = uris_of(store, found)
    return [
        {
            "index": query,
            "neighbours": [
                {"row": row, "uri": uri, "similarity": similarity}
                for row, uri, similarity in zip(rows.tolist(), uris[query], similarities.tolist(), strict=True)
            ],
        }
        for query, (rows, similarities) in enumerate(zip(found.indices, found.similarities, strict=True))
    ]
