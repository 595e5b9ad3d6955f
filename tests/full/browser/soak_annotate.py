"""Two clients change a project over HTTP while its server is killed at random moments: what was answered is there.

Each client keeps a book of what it was told is kept. A request without an answer is sent again under its name, as the
page does, so that in the end every change was answered. Then the database is what the books say.

Usage: soak_annotate.py FOLDER MODEL PICTURES [--seconds 60] [--seed 0]
"""

import argparse
import random
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from page_server import PageServer

from foveal.annotate.project import Project

CLASSES = ("cat", "cup", "flower", "house")
PATIENCE_S = 60  # for a server that starts again


class Client:
    """A window without a browser: its own half of the images, and what it was told of them.

    Attributes:
        labels: image -> class, as answered.
        history: (image, class before) of what can be undone.
        num_sent_again: requests that had no answer at first.
    """

    def __init__(self, server: PageServer, name: str, images: list[int], seed: int) -> None:
        self.server, self.name, self.images = server, name, images
        self.random = random.Random(seed)
        self.labels: dict[int, str] = {}
        self.history: list[tuple[int, str | None]] = []
        self.num_sent = self.num_sent_again = 0
        self.failure: BaseException | None = None
        base, query = urlsplit(server.address)._replace(path="", query="").geturl(), urlsplit(server.address).query
        key = {"x-api-key": parse_qs(query)["token"][0]}
        self.http = httpx.Client(base_url=base, headers=key, timeout=20, trust_env=False)

    def change(self, **action: Any) -> dict[str, Any]:
        """Send one change until it is answered."""
        self.num_sent += 1
        body = {"client": self.name, "request": f"{self.name}-{self.num_sent:08d}", "action": action}
        ends = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self.http.post("/annotate/api/write", json=body)
            except httpx.TransportError:
                assert time.monotonic() < ends, "the server does not come back"
                self.num_sent_again += 1
                time.sleep(0.05)
                continue
            if answer.status_code == 503:
                time.sleep(0.05)
                continue
            assert answer.status_code == 200, (action, answer.text)
            found: dict[str, Any] = answer.json()
            assert not found["conflicts"], found
            return found

    def step(self) -> None:
        """Label an image, take a label away, or undo."""
        if self.history and self.random.random() < 0.2:
            self.change(act="undo")
            image, before = self.history.pop()
            self._set(image, before)
            return
        image = self.random.choice(self.images)
        wanted = self.random.choice([one for one in (*CLASSES, None) if one != self.labels.get(image)])
        self.change(act="label", image=image, class_name=wanted)
        self.history.append((image, self.labels.get(image)))
        self._set(image, wanted)

    def _set(self, image: int, name: str | None) -> None:
        self.labels.pop(image, None)
        if name is not None:
            self.labels[image] = name

    def work(self, until: float) -> None:
        """Change until a moment."""
        try:
            while time.monotonic() < until:
                self.step()
        except BaseException as error:
            self.failure = error
        finally:
            self.http.close()


def soak(folder: Path, model: Path, pictures: Path, *, seconds: float, seed: int) -> str:
    """Return what was done, in words; an assertion fails where something is lost."""
    generator = random.Random(seed)
    project = folder / "project"
    command = ("-m", "foveal", "annotate", project, "--images", pictures, "--model", model, "--no-open")
    with PageServer(folder, *command) as server:
        clients = [
            Client(server, "one", list(range(0, 36, 2)), seed),
            Client(server, "two", list(range(1, 36, 2)), seed + 1),
        ]
        for name in CLASSES:
            clients[0].change(act="add_class", name=name)
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=client.work, args=(until,)) for client in clients]
        for thread in threads:
            thread.start()
        num_kills = 0
        while time.monotonic() < until - 5:
            time.sleep(generator.uniform(0.2, 4))
            server.kill()
            server.start()
            num_kills += 1
        for thread in threads:
            thread.join(timeout=2 * PATIENCE_S)
            assert not thread.is_alive()
        server.kill()
    for client in clients:
        if client.failure is not None:
            raise client.failure
    told = clients[0].labels | clients[1].labels
    with Project.open(project) as opened:
        found = opened.labels()
        stored = dict(zip(found.index.tolist(), found.names, strict=True))
    assert stored == told, {index: (stored.get(index), told.get(index)) for index in {*stored, *told}}
    sent, again = sum(one.num_sent for one in clients), sum(one.num_sent_again for one in clients)
    return f"{sent} changes by 2 clients, {num_kills} kills, {again} requests sent again: nothing lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(soak(given.folder, given.model, given.pictures, seconds=given.seconds, seed=given.seed))


if __name__ == "__main__":
    main()
