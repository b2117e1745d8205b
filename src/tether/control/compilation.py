"""Compiled functions, shared by every learner that has the same settings."""

from __future__ import annotations

import functools
import inspect
import json
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from tether.control.policy import PolicySpec

T = TypeVar("T")


class _Same:
    """A network of the user's own, equal to nothing but itself: it need not be hashable."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and self.network is other.network

    def __hash__(self) -> int:
        return id(self.network)


def share(build: Callable[..., T]) -> Callable[..., T]:
    """Make `build(config, spec, *more)` answer equal arguments with one and the same object.

    Several seeds start at the same moment, and each would compile the same functions.

    Args:
        build: makes jitted functions from a method's config, a `PolicySpec` and further hashable
            arguments.
    """

    @functools.lru_cache(maxsize=32)
    def built(config: Hashable, spec_json: str, own: _Same, *more: Hashable) -> T:
        return build(config, PolicySpec.from_json(json.loads(spec_json), own.network), *more)

    building, signature = threading.Lock(), inspect.signature(build)

    @functools.wraps(build)
    def shared(config: Hashable, spec: PolicySpec, *more: Hashable) -> T:
        # A default that is given is the same as one that is not.
        arguments = signature.bind(config, spec, *more)
        arguments.apply_defaults()
        with building:
            # Spaces cannot be hashed, their JSON can.
            own = _Same(spec.own_network)
            return built(config, json.dumps(spec.to_json()), own, *arguments.args[2:])

    return shared
