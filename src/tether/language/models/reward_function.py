"""A Python function as a reward, with the convention of TRL.

    def reward(prompts, completions, **columns) -> list[float | None]

It is called by keyword with N prompts and N completions (texts; of conversations lists of
messages), their ``completion_ids``, and each other column of the data as a list of N values. A
function without ``**kwargs`` gets only what it names. None says that the reward does not apply to a
row. A coroutine function is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tether.errors import RewardError, UserError
from tether.language.data.prompt_rows import PromptRows
from tether.language.data.tokens import Completion

_GIVEN: Final = ("prompts", "completions", "completion_ids")


class RewardFunction:
    """A function and what it takes.

    Attributes:
        function: the callable.
        name: ``module:function``, which runs record and errors name.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        """Looks at the signature.

        Args:
            function: see the module.
            name: how it was asked for; None: its module and qualified name.

        Raises:
            UserError: not callable, a class, or a signature that cannot be called by keyword or
                takes no completions.
        """
        self.name = name or name_of_function(function)
        if isinstance(function, type) or not callable(function):
            what = "a class" if isinstance(function, type) else _kind(function)
            raise UserError(
                f"the reward {self.name} is {what}; expected a function (prompts, completions, "
                "**columns), a run of `tether reward`, or a reward model"
            )
        self.function = function
        parameters = _parameters(function)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        self._named = [p.name for p in named]
        self._required = [p.name for p in named if p.default is p.empty]
        positional = [p.name for p in named if p.kind is p.POSITIONAL_ONLY]
        takes_answers = self._takes_all or {"completions", "completion_ids"} & {*self._named}
        if positional or not takes_answers:
            took = ", ".join(self._named) or "nothing"
            how = "cannot be called by keyword" if positional else "takes no completions"
            raise UserError(
                f"the reward {self.name} {how}: it takes {took}; expected (prompts, completions, "
                "**columns)"
            )

    def keeps(self, column: str) -> bool:
        """Whether the function takes this column of the data."""
        return self._takes_all or column in self._named

    def check(self, columns: Sequence[str], data: str) -> None:
        """Checks that the data have what the function takes.

        Args:
            columns: the other columns of the data.
            data: what to call the data.

        Raises:
            UserError: the function requires something else.
        """
        missing = [n for n in self._required if n not in _GIVEN and n not in columns]
        if missing:
            others = f"its other columns: {', '.join(columns)}" if columns else "no other columns"
            raise UserError(
                f"the reward {self.name} takes {missing[0]!r}, which is neither one of "
                f"{', '.join(_GIVEN)} nor in {data} ({others}); rename the parameter, give it a "
                "default, or add the column"
            )

    def choose(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those arguments that the function takes."""
        return {n: value for n, value in arguments.items() if self._takes_all or n in self._named}


@dataclass(frozen=True)
class FunctionScorer:
    """A reward function as a scorer of completions.

    Attributes:
        reward: the function.
        tokenizer: turns ids into text.
        rows: prompts and columns, which completions point to by `row`; None: the prompts are
            decoded, and there are no columns.
        timeout: seconds that a call may take; None: as long as it likes.
    """

    reward: RewardFunction
    tokenizer: Any
    rows: PromptRows | None = None
    timeout: float | None = None

    def __call__(self, items: Sequence[Completion]) -> NDArray[np.float64]:
        """One number for each completion, NaN where the reward does not apply; (N,).

        Raises:
            RewardError: the function raised, took too long, or returned anything else than one
                finite number or None for each completion.
        """
        if not items:
            return np.zeros(0)
        result = self._call(self.reward.choose(self._arguments(items)), items)
        return np.array(self._numbers(result, items), np.float64)

    def _arguments(self, items: Sequence[Completion]) -> dict[str, Any]:
        found: dict[str, Any] = {"prompts": [], "completions": [], "completion_ids": []}
        rows = [item.row for item in items if item.row is not None]
        known = self.rows if self.rows is not None and len(rows) == len(items) else None
        if known is not None:
            found |= {name: known.values(name, rows) for name in known.columns}
        for item in items:
            text = self._decode(item.completion_ids)
            row = item.row
            prompt = self._decode(item.prompt_ids) if known is None else known.prompt(row or 0)
            answer = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            found["prompts"].append(prompt)
            found["completions"].append(answer)
            found["completion_ids"].append(list(item.completion_ids))
        return found

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _call(self, arguments: dict[str, Any], items: Sequence[Completion]) -> Any:
        function = self.reward.function

        def call() -> Any:
            result = function(**arguments)
            return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

        try:
            # An event loop that runs already, as in a notebook, belongs to its own thread.
            if self.timeout is None and not inspect.iscoroutinefunction(function):
                return call()
            return _in_thread(call, self.timeout)
        except _TimeoutError:
            raise RewardError(
                f"the reward {self.reward.name} took longer than reward_timeout="
                f"{self.timeout:g} seconds {_batch(items)}"
            ) from None
        except (Exception, SystemExit) as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise RewardError(
                f"the reward {self.reward.name} raised {text[:300]}{_place(error, function)} "
                f"{_batch(items)}"
            ) from error

    def _numbers(self, result: Any, items: Sequence[Completion]) -> list[float]:
        name, expected = self.reward.name, f"expected a list of {len(items)} numbers"
        if result is None:
            raise RewardError(f"the reward {name} returned None; {expected} (is a return missing?)")
        values = result.tolist() if hasattr(result, "tolist") else result
        if isinstance(values, Mapping | str | bytes | Iterator) or not isinstance(values, Sequence):
            shown = f"the text {values!r:.60}" if isinstance(values, str) else _kind(values)
            raise RewardError(f"the reward {name} returned {shown}; {expected}")
        if len(values) != len(items):
            raise RewardError(f"the reward {name} returned {len(values)} values; {expected}")
        return [self._number(value, row, items) for row, value in enumerate(values)]

    def _number(self, value: Any, row: int, items: Sequence[Completion]) -> float:
        if value is None:
            return math.nan
        if hasattr(value, "item"):
            with contextlib.suppress(RuntimeError, ValueError):
                value = value.item()
        if not isinstance(value, int | float):
            shown = f"the text {value!r:.60}" if isinstance(value, str) else _kind(value)
        elif math.isfinite(value):
            return float(value)
        else:
            shown = str(value)
        raise RewardError(
            f"the reward {self.reward.name} returned {shown} for {named_row(items, row)}; "
            "expected a finite number, or None where it does not apply"
        )


def name_of_function(function: Any) -> str:
    """What a run records of a callable: ``module:function``, of an object its class."""
    inner = function
    while hasattr(inner, "func") and not hasattr(inner, "__qualname__"):
        inner = inner.func
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}:{named.__qualname__}"


def named_row(items: Sequence[Completion], row: int) -> str:
    """A row of a batch, and which prompt it answers, for an error message."""
    prompt = items[row].row
    return f"row {row}" if prompt is None else f"row {row} (an answer to prompt {prompt} of data)"


def place_of(error: BaseException, file: str | None = None) -> str:
    """`` at FILE:LINE`` of the code that raised, if possible in the file given; or nothing."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    frames = [f for f in frames if "importlib" not in f.filename]
    own = [frame for frame in frames if frame.filename == file]
    if not frames:
        return ""
    last = (own or frames)[-1]
    return f" at {last.filename}:{last.lineno}"


def _place(error: BaseException, function: Any) -> str:
    while hasattr(function, "func") and not hasattr(function, "__code__"):
        function = function.func
    if not hasattr(function, "__code__"):
        # A method, or an object that can be called.
        function = getattr(function, "__func__", type(function).__call__)
    code = getattr(inspect.unwrap(function), "__code__", None)
    return place_of(error, getattr(code, "co_filename", None))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        # Written in C; what it takes shows when it is called.
        return [inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)]


def _batch(items: Sequence[Completion]) -> str:
    prompts = [str(item.row) for item in items if item.row is not None]
    more = ", ..." if len(prompts) > 8 else ""
    answers = f" (answers to prompts {', '.join(prompts[:8])}{more} of data)" * bool(prompts)
    return f"on a batch of {len(items)} completions{answers}"


def _kind(value: Any) -> str:
    if isinstance(value, Iterator):
        return "a generator"
    if isinstance(value, int | float):
        return f"the number {value}"
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


async def _awaited(result: Any) -> Any:
    return await result


class _TimeoutError(Exception):
    pass


def _in_thread(call: Callable[[], Any], timeout: float | None) -> Any:
    """Runs a function in a thread of its own, which is left to itself once time is up."""
    found: dict[str, Any] = {}

    def work() -> None:
        try:
            found["result"] = call()
        except BaseException as error:
            found["error"] = error

    thread = threading.Thread(target=work, name="reward", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise _TimeoutError
    if "error" in found:
        raise found["error"]
    return found["result"]
