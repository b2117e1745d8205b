"""Ctrl-C and SIGTERM as a request that the loop answers between two iterations."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, Final, Self

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_NOTICE: Final = (
    b"\nstopping: finishing this iteration, then saving (Ctrl-C again aborts without saving)\n"
)


def stop_requested() -> bool:
    """Whether a training of this process has been asked to stop, and has not yet ended.

    What waits for long within one iteration looks at this from time to time.
    """
    return any(request.received is not None for request in _ACTIVE)


class StopRequest:
    """While active, notes the first SIGINT or SIGTERM instead of dying of it.

    A second SIGINT raises ``KeyboardInterrupt`` wherever the program stands. Python delivers
    signals to the main thread only, so in another thread this does nothing. A signal that was
    ignored (a background job's SIGINT) stays ignored. The earlier handlers come back at the end.
    """

    def __init__(self) -> None:
        """Nothing is requested yet."""
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Installs the handlers."""
        _ACTIVE.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                previous = signal.getsignal(number)
                # None: installed by C code, which Python could not put back.
                if previous not in (signal.SIG_IGN, None):
                    self._previous[number] = previous
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the earlier handlers back."""
        _ACTIVE.remove(self)
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            # Not print: a handler may run in the middle of another print to the same buffer.
            with suppress(OSError):
                os.write(2, _NOTICE)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


_ACTIVE: Final[list[StopRequest]] = []
