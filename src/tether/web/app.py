"""The labelling server's routes."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tether.errors import StoreError, UserError
from tether.preferences.store import Store
from tether.web.guard import Guard, Hosts
from tether.web.messages import (
    AnswerReply,
    AnswerRequest,
    Name,
    NextReply,
    NextRequest,
    PeopleReply,
    ProgressReply,
    ReleaseReply,
    ReleaseRequest,
    SessionReply,
    TrainingReply,
    UndoReply,
    UndoRequest,
)
from tether.web.people import people
from tether.web.questions import Questions, UnknownError
from tether.web.rendering import ClipMaker, Priority, Renderer
from tether.web.training import Training

_STATIC: Final = Path(__file__).parent / "static"
_MEDIA: Final = {"mp4": "video/mp4", "webm": "video/webm"}


def create_app(
    store: Store,
    clips: ClipMaker,
    token: str,
    *,
    identity: str = "store",
    title: str = "",
    run: Path | None = None,
    hosts: Hosts | None = None,
    overlap: int = 1,
    goal: int | None = None,
    lease_seconds: float = 120.0,
) -> FastAPI:
    """The labelling server over a store.

    Args:
        store: what is labelled; other processes may use it at the same time.
        clips: what draws segments, such as :class:`tether.control.clips.Clips`; it is sent to a
            process of its own.
        token: what a browser must show, once in the address and from then on as a cookie.
        identity: names the store to browsers, which keep what they could not send by it.
        title: what is compared.
        run: folder of the run that trains on the answers, for its curves.
        hosts: names under which the server may be addressed, besides the loopback's.
        overlap: how many annotators are to answer each comparison.
        goal: how many labels are wanted; the store's own note if None.
        lease_seconds: how long a comparison is an annotator's without a sign of them.
    """
    renderer = Renderer(clips)
    questions = Questions(
        store,
        renderer,
        identity=identity,
        title=title,
        overlap=overlap,
        goal=goal,
        lease_seconds=lease_seconds,
    )
    training = Training(run)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Starting the process that draws takes seconds; the first clip should not wait for it.
        await run_in_threadpool(questions.warm_up)
        yield
        await run_in_threadpool(renderer.close)

    app = FastAPI(
        title="tether label", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    _answer_errors(app)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(_STATIC / "index.html", headers={"Cache-Control": "no-store"})

    @app.get("/api/session")
    def session() -> SessionReply:
        return questions.session()

    @app.post("/api/next")
    def following(asked: NextRequest) -> NextReply:
        return questions.next(asked)

    @app.post("/api/answers")
    def answer(given: AnswerRequest) -> AnswerReply:
        return questions.answer(given)

    @app.post("/api/undo")
    def undo(asked: UndoRequest) -> UndoReply:
        return questions.undo(asked)

    @app.post("/api/release")
    def release(asked: ReleaseRequest) -> ReleaseReply:
        return questions.release(asked)

    @app.get("/api/progress")
    def progress(annotator: Annotated[Name, Query()]) -> ProgressReply:
        return questions.progress(annotator)

    @app.get("/api/annotators")
    def annotators() -> PeopleReply:
        return people(store)

    @app.get("/api/training")
    def curves() -> TrainingReply:
        return TrainingReply(curves=training.curves(), policy=questions.policy())

    @app.get("/clips/{item}.{format}")
    async def clip(item: str, format: str) -> FileResponse:
        if format not in _MEDIA or len(item) != 32 or not set(item) <= set("0123456789abcdef"):
            raise HTTPException(404, "there is no such clip")
        ready = await run_in_threadpool(questions.clip, item, format, Priority.SHOWN)  # type: ignore[arg-type]
        # Shielded: whoever asked may have gone, but others wait for the same clip.
        try:
            path = await asyncio.shield(asyncio.wrap_future(ready))
        except UserError as error:
            raise HTTPException(503, str(error)) from error
        # A clip is named by its content, so it never changes.
        keep = {"Cache-Control": "private, max-age=31536000, immutable"}
        return FileResponse(path, media_type=_MEDIA[format], headers=keep)

    app.add_middleware(Guard, token=token, hosts=hosts or Hosts())
    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error is an HTTP status and one line of JSON."""

    def handler(status: Callable[[Any], int], line: Callable[[Any], str]) -> Any:
        def reply(_: Request, error: Exception) -> JSONResponse:
            content = {"error": line(error)}
            return JSONResponse(content, status(error), headers={"Cache-Control": "no-store"})

        return reply

    app.add_exception_handler(HTTPException, handler(lambda e: e.status_code, _line_of_http))
    app.add_exception_handler(
        RequestValidationError,
        handler(lambda e: 400 if e.errors()[0]["type"] == "json_invalid" else 422, _first_mistake),
    )
    app.add_exception_handler(UnknownError, handler(lambda _: 404, str))
    app.add_exception_handler(UserError, handler(_status_of, str))
    app.add_exception_handler(OSError, handler(_status_of_os, _line_of_os))


def _line_of_http(error: HTTPException) -> str:
    # FastAPI's words for a body that is not UTF-8, or nested too deeply.
    if error.detail == "There was an error parsing the body":
        return "the request is not JSON"
    return str(error.detail)


def _status_of(error: UserError) -> int:
    """503 and 507 say that the same request may succeed later, so the browser keeps an answer."""
    if isinstance(error, StoreError):
        return 507 if "disk is full" in str(error) else 503
    return 422


def _status_of_os(error: OSError) -> int:
    return 507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 503


def _line_of_os(error: OSError) -> str:
    if _status_of_os(error) == 507:
        return "the disk is full, so no clip can be written; nothing that was saved is lost"
    return f"the clip cannot be written: {error.strerror or error}"


def _first_mistake(error: RequestValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"the request is not JSON: {first.get('ctx', {}).get('error', 'malformed')}"
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    return f"{where or 'the request'}: {first['msg']}"
