"""Several processes that learn as one.

Started by ``torchrun`` or ``accelerate launch``, every process loads the model and the data, reads
its share of every batch, and takes the same step along the sum of all gradients::

    rows of a batch -> share -> losses over the count of the WHOLE batch -> gradients, added up

So the numbers are those of one process, but for the order in which they are added. The first
process leads: it alone owns the run's folder, and its every iteration sets off the others'.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from tether.errors import RunError
from tether.learning.learner import Learner, Metrics, State
from tether.learning.signals import StopRequest

T = TypeVar("T")


class Processes:
    """This process and those it learns with.

    Attributes:
        rank: this one's number, from 0, which leads.
        count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        """Use :func:`join` and :func:`processes`."""
        self.rank = rank
        self.count = count

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every `count`-th item: what this process is to do of a list that all of them have."""
        return items if self.count == 1 else items[self.rank :: self.count]

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks; all have to call it.

        Args:
            value: JSON-able; floats keep every bit.

        Raises:
            RunError: another process has ended.
        """
        if self.count == 1:
            return [value]
        # Text, so that nothing a process receives can be executed.
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with self._connected():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
            distributed.all_gather(lengths, torch.tensor([len(own)]))
            longest = int(max(lengths))
            texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
            distributed.all_gather(texts, nn.functional.pad(own, (0, longest - len(own))))
        return [
            json.loads(text[: int(length)].numpy().tobytes())
            for text, length in zip(texts, lengths, strict=True)
        ]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in place.

        Raises:
            RunError: another process has ended.
        """
        if self.count == 1:
            return
        with self._connected():
            works = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in works:
                work.wait()

    def add_up_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Gives every process the sum of all gradients; where none has one, there stays none."""
        if self.count == 1:
            return
        there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        self.add_up([there])
        learning = [p for p, number in zip(parameters, there.tolist(), strict=True) if number]
        for parameter in learning:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient.contiguous()
        self.add_up([p.grad for p in learning if p.grad is not None])

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Lets the leader do it before the others, who then find what it left in the cache."""
        if not self.leads:
            self.gather(None)
        yield
        if self.leads:
            self.gather(None)

    def device(self, name: str) -> str:
        """Where this process computes: each has a GPU of its own."""
        if name == "cuda" and self.count > 1:
            return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        return name

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise RunError(
                f"process {self.rank} of {self.count} lost the others ({reason}); what ended them "
                "is reported above or below"
            ) from error


_here = Processes()


def processes() -> Processes:
    """Who learns together; this process alone, unless it has joined others."""
    return _here


def join() -> Processes:
    """Meets the other processes that a launcher has started, if it has.

    Raises:
        RunError: they cannot be reached.
    """
    global _here  # noqa: PLW0603 (a process belongs to one group, as in torch.distributed)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or _here.count > 1:
        return _here
    found = Processes(int(os.environ["RANK"]), count)
    with found._connected():
        if not distributed.is_initialized():
            gpu = torch.cuda.is_available()
            if gpu:
                torch.cuda.set_device(found.device("cuda"))
            distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    _here = found
    return found


def end(code: int) -> None:
    """Ends this process if it has joined others; otherwise does nothing.

    About one time in thirty a thread of gloo's outlives the interpreter, which then aborts, and the
    launcher takes a run for failed that is done and written. So the interpreter is left out.
    """
    if _here.count == 1:
        return
    if distributed.is_initialized():
        distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Leader:
    """The first process's learner: each of its iterations is one of all processes."""

    def __init__(self, learner: Learner) -> None:
        """Takes the learner that the loop would drive by itself."""
        self._learner = learner
        self._busy = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    @property
    def steps(self) -> int:
        """The learner's own."""
        return self._learner.steps

    def iterate(self) -> Metrics:
        """Tells the others to begin, and begins."""
        self._busy = True
        _here.gather(self.steps)
        metrics = self._learner.iterate()
        self._busy = False
        return metrics

    def state(self) -> State:
        """The learner's own."""
        return self._learner.state()

    def restore(self, state: State) -> None:
        """Restores the learner."""
        self._learner.restore(state)

    def dismiss(self) -> None:
        """Tells the others that all is done, unless an iteration failed, which they know."""
        if not self._busy:
            _here.gather(None)


def follow(learner: Learner) -> Metrics:
    """Iterates whenever the leader does, until it has done.

    Returns:
        The last iteration's metrics.

    Raises:
        RunError: the leader stands elsewhere, or has ended.
    """
    metrics: Metrics = {}
    # A signal is for the leader, which finishes the iteration with everyone.
    with StopRequest():
        while (steps := _here.gather(learner.steps)[0]) is not None:
            if steps != learner.steps:
                raise RunError(
                    f"process {_here.rank} is at step {learner.steps}, the leader at {steps}; "
                    "all processes need the same run folder and data"
                )
            metrics = learner.iterate()
    return metrics
