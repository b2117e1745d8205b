"""Group commit: what several threads write at the same time shares one trip to the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tether.errors import UserError

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

MOST: Final = 64
"""Writes in one transaction."""


class _Ticket:
    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None


class GroupCommit:
    """Runs writes in shared transactions; each returns after the commit that holds it.

    Whoever comes first carries out what the others have brought meanwhile. A write that raises
    UserError must have written nothing; the others of its transaction go on.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._transaction = transaction
        self._turn = threading.Lock()
        self._waiting: deque[_Ticket] = deque()

    def __call__(self, work: Callable[[Connection], T]) -> T:
        """Carries out one write.

        Raises:
            UserError: what `work` raised, or the store cannot be written to.
        """
        ticket = _Ticket(work)
        self._waiting.append(ticket)
        with self._turn:
            while not ticket.done:
                self._carry_out()
        if isinstance(ticket.error, UserError):
            # Threads that share a failure must not share its traceback.
            raise type(ticket.error)(str(ticket.error)) from ticket.error
        if ticket.error is not None:
            raise ticket.error
        value: T = ticket.value
        return value

    def _carry_out(self) -> None:
        tickets = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
        try:
            with self._transaction() as connection:
                for ticket in tickets:
                    try:
                        ticket.value = ticket.work(connection)
                    except UserError as error:
                        ticket.error = error
        except BaseException as error:
            for ticket in tickets:
                ticket.error = ticket.error or error
        finally:
            for ticket in tickets:
                ticket.done = True
