"""The labelling page's requests, without its browser."""

from __future__ import annotations

import uuid
from typing import Any

from starlette.testclient import TestClient

TOKEN = "a-token-that-is-made-anew-at-each-start"
ORIGIN = "http://127.0.0.1:8765"


class Page:
    """What the page's script does, without its browser."""

    def __init__(self, client: TestClient, name: str = "ann") -> None:
        self.client, self.name = client, name

    def post(self, path: str, body: Any, **headers: str) -> Any:
        return self.client.post(path, json=body, headers={"Origin": ORIGIN, **headers})

    def next(self, count: int = 1) -> Any:
        reply = self.post("/api/next", {"annotator": self.name, "count": count})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def answer(self, pair: Any, preference: float | None = 1.0, **more: Any) -> Any:
        body = {
            "uuid": str(uuid.uuid4()),
            "query": pair["query"],
            "lease": pair["lease"],
            "annotator": self.name,
            "preference": preference,
            **more,
        }
        return self.post("/api/answers", body)
