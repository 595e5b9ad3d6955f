"""The folder of a new project: written under another name, and whole once it is there."""

import hashlib
import secrets
from collections import Counter
from pathlib import Path

from foveal.annotate.database import Database
from foveal.errors import ProjectError, UnwritableProjectError
from foveal.features.extract import Model
from foveal.features.origin import identity_of
from foveal.features.store import FeatureStore
from foveal.files import publish_new, staged
from foveal.images.imageset import ImageSet

DATABASE = "project.sqlite"
IMAGES = "images"


def create_folder(
    folder: Path, images: ImageSet, *, model: Model | FeatureStore | None, share: float, key: bytes | None
) -> None:
    """Write the folder of a project; see `foveal.annotate.project.Project.create`."""
    check_new_folder(folder)
    if not 0 <= share < 1:
        raise ProjectError(f"held_out_share={share}; give 0, or a share below 1 such as 0.2")
    rows = _image_rows(images, share=share, key=secrets.token_bytes(16) if key is None else key)
    facts = {"created": "0", **(model_facts(identity_of(model)) if model is not None else {})}
    try:
        with staged(folder) as staging:
            images.save(staging / IMAGES)
            facts["created"] = str((staging / IMAGES).stat().st_mtime)
            database = Database.create(staging / DATABASE)
            with database.writing() as connection:
                connection.executemany("INSERT INTO images (id, uri, held_out) VALUES (?, ?, ?)", rows)
                connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
            database.close()
            created = publish_new(staging, folder)
    except UnwritableProjectError as error:
        raise UnwritableProjectError(str(error).replace(str(staging), str(folder))) from error
    except OSError as error:
        raise ProjectError(f"{folder} cannot be written ({error}); check space and permissions") from error
    if not created:
        raise ProjectError(f"{folder} was made by another process just now; open it")


def model_facts(model: dict[str, str]) -> dict[str, str]:
    """Return a model as the facts of a project name it."""
    return {"model_name": model["name"], "model_sha256": model["sha256"]}


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that is in use."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(f"{folder} already exists and is not empty; choose another name or remove it first")


def _image_rows(images: ImageSet, *, share: float, key: bytes) -> list[tuple[int, str, bool]]:
    uris = images.rows.column("uri").to_pylist()
    if len(set(uris)) < len(uris):
        twice = next(uri for uri, count in Counter(uris).items() if count > 1)
        raise ProjectError(f"{twice} is listed twice; list each image once")

    def fraction(uri: str) -> float:
        return int.from_bytes(hashlib.blake2b(uri.encode(), key=key, digest_size=8).digest()) / 2**64

    return [(index, uri, fraction(uri) < share) for index, uri in enumerate(uris)]
