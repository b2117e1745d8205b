"""`tether label`: the page on which people answer a run's comparisons."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tyro

from tether.arguments import parse, print_json, say
from tether.errors import Interrupted, UserError
from tether.learning.run import Run
from tether.preferences.places import STORE_FILE, is_url
from tether.preferences.store import Store

PORT: Final = 8765
_TRIED: Final = 10


@dataclass(frozen=True)
class LabelOptions:
    """Serve the page on which people compare clips or texts, while training goes on beside it."""

    place: tyro.conf.Positional[str]
    """RUN or STORE: a run's folder, the file of a store, or a postgresql:// URL."""
    host: str = "127.0.0.1"
    """The address to listen on. Others than this machine's own need --allow-remote."""
    port: int | None = None
    """The port; 8765, or the next free one, if not given. 0 takes any that is free."""
    allow_remote: bool = False
    """Lets other machines reach the page, without encryption: whoever has the printed address can
    answer."""
    allow_host: tuple[str, ...] = ()
    """Further names under which the page may be opened, such as that of a proxy before it."""
    overlap: int = 1
    """How many different people are to answer each comparison; 2 or more measure agreement."""
    goal: int | None = None
    """How many labels are wanted; what the training asks for if not given."""
    speed: float = 1.0
    """Playback speed of clips; 1 is real time, whatever a step of the environment lasts."""
    size: int = 320
    """Width and height of clips, in pixels."""
    lease: float = 120.0
    """Seconds after which a comparison that was shown to somebody who left is given to others."""
    clips: Path | None = None
    """The folder that keeps drawn clips; beside the store if not given."""
    json: bool = False
    """Prints one JSON object with the address as the first line of stdout."""


@dataclass(frozen=True)
class _Place:
    """A store, and the run that it belongs to, if any."""

    store: str | Path
    run: Path | None
    clips: Path


def label(arguments: Sequence[str]) -> None:
    """`tether label RUN|STORE`."""
    options = parse(LabelOptions, arguments, prog="tether label")
    # A missing package is reported before anything is opened.
    import fastapi  # noqa: F401
    import uvicorn

    from tether.control.clips import Clips, ClipStyle
    from tether.web.app import create_app
    from tether.web.guard import Hosts

    _check(options)
    place = _place(options.place)
    clips = Clips(options.clips or place.clips, ClipStyle(size=options.size, speed=options.speed))
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store.open(place.store, create=place.run is not None))
        listener = stack.enter_context(contextlib.closing(_listen(options)))
        token = secrets.token_urlsafe(32)
        names, anyone = _names(options)
        app = create_app(
            store,
            clips,
            token,
            identity=_identity(place.store),
            title=_title(place.run),
            run=place.run,
            hosts=Hosts(names, any_address=anyone),
            overlap=options.overlap,
            goal=options.goal,
            lease_seconds=options.lease,
        )
        address = f"http://{_shown_host(options.host)}:{listener.getsockname()[1]}/?token={token}"
        counts = store.counts()
        if options.json:
            print_json({"url": address, "store": store.name, "pid": os.getpid()})
        say(f"labels of {store.name}: {counts.answered} given, {counts.open} comparisons open")
        if not counts.queries:
            say("the training has made no queries yet; the page waits for them")
        if options.allow_remote:
            say("other machines can reach this page, unencrypted, with the address below")
        say(f"open {address}")
        say("Ctrl-C ends the server; every answer it has confirmed is on the disk")
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            ws="none",
            h11_max_incomplete_event_size=32 * 1024,
        )
        server = uvicorn.Server(config)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(server.serve(sockets=[listener]))
        counts = store.counts()
        line = f"ended; {counts.answered} labels are in {store.name}"
        say(line)
    raise Interrupted(line)


def _check(options: LabelOptions) -> None:
    if options.overlap < 1:
        raise UserError(f"--overlap is {options.overlap}; expected at least 1")
    if options.goal is not None and options.goal < 1:
        raise UserError(f"--goal is {options.goal}; expected at least 1")
    if not 5 <= options.lease <= 86400:
        raise UserError(f"--lease is {options.lease}; expected 5 to 86400 seconds")
    if options.port is not None and not 0 <= options.port <= 65535:
        raise UserError(f"--port is {options.port}; expected 0 to 65535")
    if not _is_loopback(options.host) and not options.allow_remote:
        raise UserError(
            f"--host {options.host} would let other machines reach the page, without encryption; "
            "add --allow-remote if that is meant"
        )


def _place(given: str) -> _Place:
    """Where the store is that RUN or STORE names.

    Raises:
        UserError: there is nothing of that name, or it is neither.
    """
    if is_url(given):
        name = hashlib.sha256(given.encode()).hexdigest()[:12]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return _Place(given, None, cache / "tether" / "clips" / name)
    path = Path(given)
    if path.is_dir():
        Run.open(path)
        return _Place(path / STORE_FILE, path, path / "clips")
    if not path.exists():
        raise UserError(f"there is no {given}; give a run's folder or the file of a store")
    run = path.parent if (path.parent / "run.json").exists() else None
    return _Place(path, run, path.parent / ("clips" if run else f"{path.stem}.clips"))


def _title(run: Path | None) -> str:
    if run is None:
        return ""
    spec = Run.open(run).spec
    return str(spec.get("env") or spec.get("model") or "")[:80]


def _listen(options: LabelOptions) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address is none of this machine's, or the port is taken.
    """
    ports = [options.port] if options.port is not None else [PORT + i for i in range(_TRIED)]
    for port in ports:
        try:
            return _bound(options.host, port)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            if taken and port != ports[-1]:
                continue
            if taken:
                line = f"port {port} is in use; choose another: --port 0 takes any that is free"
                raise UserError(line) from error
            raise UserError(
                f"cannot listen on {options.host} port {port}: {error.strerror or error}"
            ) from error
    raise AssertionError


def _bound(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        listener.set_inheritable(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _names(options: LabelOptions) -> tuple[set[str], bool]:
    """Names under which the page may be opened, and whether any address will do."""
    names = {name.lower() for name in (options.host, *options.allow_host)}
    everywhere = options.host in ("0.0.0.0", "::")
    if everywhere:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return names, everywhere


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _identity(store: str | Path) -> str:
    """Names a store to browsers, without saying where it is."""
    name = str(store.resolve()) if isinstance(store, Path) else store
    return hashlib.sha256(name.encode()).hexdigest()[:16]
