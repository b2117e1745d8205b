"""An OpenAI-compatible server as a judge: vLLM, llama.cpp, Ollama or a hosted one.

Verdicts are read from ``top_logprobs`` of the first token of a chat completion. What a server can
do wrong (be down, be slow, limit the rate, answer nonsense or half a body) is retried with growing
pauses; what stays wrong is an error and never a score.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np

from tether.errors import JudgeError, UserError
from tether.language.judge.backends import Cost, LogProbs, Sides
from tether.language.judge.questions import Reading
from tether.language.models.files import one_line

T = TypeVar("T")

_AGAIN: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FOR_ALL: Final = frozenset({401, 402, 403, 404, 405})
_LONGEST_PAUSE: Final = 60.0
_LEAST: Final = -100.0


class ServerError(JudgeError):
    """A server that nothing more can be asked of: down, closed to us, or without probabilities."""


@dataclass(frozen=True)
class Connection:
    """How a server is asked.

    Attributes:
        url: such as ``http://localhost:8000/v1``.
        model: as the server calls it; None: the only one it has.
        key_variable: environment variable with the key that the server wants; None: none.
        timeout: seconds for one request.
        retries: how often a request is sent again.
        pause: seconds before the first repetition, doubled each time.
        concurrency: requests under way at once.
        top_logprobs: likeliest tokens that the server is asked for; most servers give 20 at most.
    """

    url: str
    model: str | None = None
    key_variable: str | None = None
    timeout: float = 60.0
    retries: int = 5
    pause: float = 0.5
    concurrency: int = 8
    top_logprobs: int = 20


class Server:
    """A chat server as a backend.

    Attributes:
        name: of the model.
        digest: of URL and model.
        only_chat: True.
        cost: requests and tokens so far.
    """

    only_chat = True

    def __init__(self, connection: Connection) -> None:
        """Asks the server for its model.

        Raises:
            UserError: it cannot be reached, has no or several models, or its key is missing.
        """
        import httpx2

        self._connection = connection
        self._url = _base(connection.url)
        headers = {}
        if connection.key_variable is not None:
            key = os.environ.get(connection.key_variable)
            if not key:
                raise UserError(
                    f"key_variable is {connection.key_variable!r}, and there is no such "
                    "environment variable; set it to the server's key"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx2.Client(timeout=connection.timeout, headers=headers)
        self._lock = threading.Lock()
        self._closed: ServerError | None = None
        self.cost = Cost()
        self.model = connection.model or self._only_model()
        self.name = self.model.rstrip("/").rpartition("/")[2]
        self.digest = hashlib.sha256(f"{self._url} {self.model}".encode()).hexdigest()[:32]

    def share(self, readings: Sequence[Reading]) -> None:
        """Servers keep what questions have in common by themselves."""

    def answer(self, readings: Sequence[Reading], sides: Sides) -> list[LogProbs | JudgeError]:
        """See :class:`tether.language.judge.backends.Backend`.

        Raises:
            UserError: answer words of which one begins another, as 1 does 10: from the first
                token alone they cannot be told apart.
        """
        words = [word.strip().casefold() for side in sides for word in side]
        for one in words:
            longer = next((w for w in words if w != one and w.startswith(one)), None)
            if longer is not None:
                raise UserError(
                    f"the answer word {one!r} begins {longer!r}, and a server's first token does "
                    "not tell them apart; choose a model on this machine, or another mode"
                )
        most = self._connection.top_logprobs

        def ask(reading: Reading, _: int) -> LogProbs:
            said = self._complete(
                reading, max_tokens=1, temperature=1.0, logprobs=True, top_logprobs=most
            )
            return self._read(said, sides)

        return self._each(ask, readings)

    def reason(
        self, readings: Sequence[Reading], *, most: int, temperature: float, seeds: Sequence[int]
    ) -> list[str | JudgeError]:
        """See :class:`tether.language.judge.backends.Backend`."""

        def ask(reading: Reading, place: int) -> str:
            said = self._complete(
                reading,
                max_tokens=most,
                temperature=temperature,
                # Some servers keep seeds in 32 bits.
                seed=seeds[place] % 2**31,
            )
            text = _inside(said, "choices", 0, "message", "content")
            if not isinstance(text, str):
                raise JudgeError(f"the server {self._url} gave no text")
            return text

        return self._each(ask, readings)

    def _each(
        self, ask: Callable[[Reading, int], T], readings: Sequence[Reading]
    ) -> list[T | JudgeError]:
        def guarded(place: int) -> T | JudgeError:
            if self._closed is not None:
                return self._closed
            try:
                return ask(readings[place], place)
            except ServerError as error:
                self._closed = error
                return error
            except JudgeError as error:
                return error

        began = time.monotonic()
        with ThreadPoolExecutor(self._connection.concurrency) as pool:
            found = list(pool.map(guarded, range(len(readings))))
        self.cost.seconds += time.monotonic() - began
        return found

    def _complete(self, reading: Reading, **settings: Any) -> Mapping[str, Any]:
        messages = [{"role": turn.role, "content": turn.content} for turn in reading.turns]
        body = {"model": self.model, "messages": messages, **settings}
        said = self._send("POST", "/chat/completions", body)
        usage = said.get("usage")
        if isinstance(usage, dict):
            with self._lock:
                self.cost.prompt_tokens += int(usage.get("prompt_tokens") or 0)
                self.cost.completion_tokens += int(usage.get("completion_tokens") or 0)
        return said

    def _read(self, said: Mapping[str, Any], sides: Sides) -> LogProbs:
        listed = _inside(said, "choices", 0, "logprobs", "content", 0, "top_logprobs")
        if not isinstance(listed, list) or not listed:
            raise ServerError(
                f"the server {self._url} gives no log-probabilities (top_logprobs) for "
                f"{self.model!r}; a judge needs them: choose a server or model that has them"
            )
        try:
            tokens = [(str(one["token"]), float(one["logprob"])) for one in listed]
        except (KeyError, TypeError, ValueError):
            raise JudgeError(f"the server {self._url} gave malformed top_logprobs") from None
        if any(np.isnan(value) or value > 1e-3 for _, value in tokens):
            raise JudgeError(f"the server {self._url} gave invalid log-probabilities")
        return self._of_sides(tokens, sides)

    def _of_sides(self, tokens: Sequence[tuple[str, float]], sides: Sides) -> LogProbs:
        found = []
        for side in sides:
            words = {word.strip().casefold() for word in side}
            own = [value for token, value in tokens if token.strip().casefold() in words]
            found.append(np.logaddexp.reduce(own) if own else -np.inf)
        words = {word.strip().casefold() for side in sides for word in side}
        if not np.isfinite(found).any():
            begun = next(
                (t for t, _ in tokens if t.strip() and any(_begins(t, w) for w in words)), None
            )
            if begun is not None:
                raise JudgeError(
                    f"the answer words {', '.join(sorted(words))} are several tokens of "
                    f"{self.model!r} (one begins with {begun!r}); give answer words of one token"
                )
            raise JudgeError(
                f"none of the answer words {', '.join(sorted(words))} is among the "
                f"{len(tokens)} likeliest tokens of {self.model!r}"
            )
        # What is not listed is less likely than what is, and has no more than is left.
        least = min(value for _, value in tokens)
        left = np.log(max(-np.expm1(np.logaddexp.reduce([v for _, v in tokens])), np.exp(_LEAST)))
        bound = float(max(min(least, left), _LEAST))
        return np.array([value if np.isfinite(value) else bound for value in found], np.float64)

    def _only_model(self) -> str:
        said = self._send("GET", "/models", None)
        listed = _inside(said, "data")
        names = [str(one["id"]) for one in listed or [] if isinstance(one, dict) and "id" in one]
        if len(names) != 1:
            has = f"has {', '.join(names[:8])}" if names else "names no model"
            raise UserError(f"the server {self._url} {has}; choose one with --server-model")
        return names[0]

    def _send(self, method: str, path: str, body: Any) -> dict[str, Any]:
        """One request, sent again where that may help."""
        connection = self._connection
        why: JudgeError = JudgeError("")
        for attempt in range(connection.retries + 1):
            with self._lock:
                self.cost.requests += 1
                self.cost.retries += attempt > 0
            pause = connection.pause * 2**attempt
            try:
                return self._once(method, path, body)
            except _Again as again:
                why = again.error
                pause = max(pause, again.after)
            if attempt < connection.retries:
                time.sleep(min(pause, _LONGEST_PAUSE))
        raise type(why)(f"{why} (asked {connection.retries + 1} times)")

    def _once(self, method: str, path: str, body: Any) -> dict[str, Any]:
        import httpx2

        url = self._url
        try:
            reply = self._client.request(method, f"{url}{path}", json=body)
        except httpx2.TimeoutException:
            seconds = self._connection.timeout
            raise _Again(
                ServerError(f"the server {url} did not answer within {seconds:g} seconds (timeout)")
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            line = one_line(error)
            raise _Again(ServerError(f"the server {url} cannot be reached: {line}")) from None
        if reply.status_code in _AGAIN:
            limits = "limits the rate" if reply.status_code == 429 else "fails"
            raise _Again(
                ServerError(f"the server {url} {limits}: status {reply.status_code}"),
                _seconds(reply.headers.get("retry-after")),
            )
        if reply.status_code >= 300:
            kind = ServerError if reply.status_code in _FOR_ALL else JudgeError
            said = _complaint(reply.text)
            raise kind(f"the server {url} refuses with status {reply.status_code}{said}")
        try:
            found = json.loads(reply.content)
        except (ValueError, RecursionError):
            raise _Again(
                JudgeError(f"the server {url} answered something that is not JSON")
            ) from None
        if not isinstance(found, dict):
            raise _Again(JudgeError(f"the server {url} answered no JSON object"))
        if "error" in found and "choices" not in found and path != "/models":
            raise JudgeError(f"the server {url} refuses{_complaint(reply.text)}")
        return found


class _Again(Exception):  # noqa: N818
    """A request that may be sent again, after some seconds at least."""

    def __init__(self, error: JudgeError, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


def is_url(name: str) -> bool:
    """Whether a judge's model is meant by URL."""
    return name.startswith(("http://", "https://"))


def _base(url: str) -> str:
    bare = url.rstrip("/")
    bare = bare.removesuffix("/chat/completions")
    return bare if bare.rpartition("/")[2].startswith("v") else f"{bare}/v1"


def _inside(said: Any, *path: str | int) -> Any:
    for key in path:
        try:
            said = said[key]
        except (KeyError, IndexError, TypeError):
            return None
    return said


def _begins(token: str, word: str) -> bool:
    part = token.strip().casefold()
    return part != word and word.startswith(part)


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0.0), 0.0)
    except ValueError:
        return 0.0


def _complaint(text: str) -> str:
    """What a server says of a request, without what it may repeat of the request's texts."""
    try:
        said = _inside(json.loads(text), "error")
        kind = said.get("code") or said.get("type") if isinstance(said, dict) else None
    except ValueError:
        kind = None
    return f" ({str(kind)[:80]})" if isinstance(kind, str) else ""
