"""A chat server on this machine that gives a model's real probabilities, and fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from tether.language.data.fields import Turn
from tether.language.data.templates import Template
from tether.language.models.generation import generate
from tether.language.models.language_model import LanguageModel


class ChatServer:
    """An OpenAI-compatible server.

    Attributes:
        faults: what goes wrong with the next requests, in order: a status, or a word.
        requests: bodies of the completions that were asked for, in order.
        keys: what came in the header of authorization.
        models: what GET /v1/models names.
        lists: tokens that an answer lists at least, however many were asked for.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.template = Template(model.tokenizer, "chat")
        self.faults: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.models = ["served/tiny"]
        self.retry_after: str | None = None
        self.lists = 1
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serves, and gives its URL."""
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": name} for name in served.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with served.lock:
                    served.requests.append(body)
                    served.keys.append(self.headers.get("Authorization"))
                    fault = served.faults.pop(0) if served.faults else None
                    if fault is None:
                        return self.reply(200, served.complete(body))
                self.fail(fault, body)
                return None

            def fail(self, fault: Any, body: dict[str, Any]) -> None:
                if isinstance(fault, int):
                    said = {"error": {"message": f"no: {body['messages']}", "type": "refused"}}
                    return self.reply(fault, said)
                if fault == "slow":
                    time.sleep(1.0)
                    return self.reply(200, served.complete(body))
                if fault == "nonsense":
                    return self.send(200, b"<html>Bad gateway</html>")
                if fault == "list":
                    return self.send(200, b"[1, 2]")
                whole = served.complete(body)
                if fault == "half":
                    self.send_response(200)
                    text = json.dumps(whole).encode()
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text[: len(text) // 2])
                    self.close_connection = True
                    return None
                if fault == "no log-probabilities":
                    whole["choices"][0]["logprobs"] = None
                if fault == "strange":
                    whole["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [{"a": 1}]
                if fault == "nan":
                    whole["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [
                        {"token": "positive", "logprob": float("nan")}
                    ]
                return self.reply(200, whole)

            def reply(self, status: int, said: dict[str, Any]) -> None:
                self.send(status, json.dumps(said).encode())

            def send(self, status: int, text: bytes) -> None:
                self.send_response(status)
                if status == 429 and served.retry_after is not None:
                    self.send_header("Retry-After", served.retry_after)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """A completion with the probabilities of its first token."""
        turns = [Turn(one["role"], one["content"]) for one in body["messages"]]
        ids = self.template.prompt_ids(tuple(turns))
        logits = self.model.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        top = logits.log_softmax(-1).topk(max(body.get("top_logprobs", 1), self.lists))
        names = [self.model.tokenizer.decode([int(token)]) for token in top.indices]
        listed = [
            {"token": name, "logprob": float(value)}
            for name, value in zip(names, top.values, strict=True)
        ]
        (answer,) = generate(
            self.model,
            [ids],
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            seeds=[body.get("seed", 0)],
        )
        return {
            "choices": [
                {
                    "message": {
                        "role": "assistant",
                        "content": self.template.decode(answer.completion_ids),
                    },
                    "logprobs": {"content": [{"token": names[0], "top_logprobs": listed}]},
                }
            ],
            "usage": {
                "prompt_tokens": len(ids),
                "completion_tokens": len(answer.completion_ids),
            },
        }
