"""Keys and values of the tokens read so far, kept with room for those to come."""

from typing import Any, Final

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK: Final = 64
"""Tokens by which the room grows."""


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration.

    transformers' own copies all it holds at every token. Layers of other kinds (sliding windows)
    stay its own.
    """
    cache = DynamicCache(config=config)
    roomy: Any = _Roomy
    cache.layers = [roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_repeat(config: Any) -> bool:
    """Whether what a model of this configuration has read can be shared by several rows."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def repeated(cache: DynamicCache, rows: int, room: int) -> DynamicCache:
    """A cache of `rows` rows, each of which begins with the one row of `cache`.

    Args:
        cache: of :func:`new_cache`, (1, heads, T, D) in each layer; it is not changed.
        rows: B.
        room: tokens that will be read next.
    """
    found = DynamicCache()
    read: Any = cache.layers
    roomy: Any = _Roomy
    for layer in read:
        copy = roomy()
        shape = (rows, -1, -1, -1)
        copy.dtype, copy.device = layer.keys.dtype, layer.keys.device
        copy._hold(layer.keys.expand(shape), layer.values.expand(shape), room)
        copy.is_initialized = True
        found.layers.append(copy)
    return found


def forget(cache: DynamicCache, length: int) -> None:
    """Forgets what a cache of :func:`new_cache` or :func:`repeated` has read after `length`."""
    for layer in cache.layers:
        held: Any = layer
        held.keys, held.values = held.keys[:, :, :length], held.values[:, :, :length]


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer whose keys and values are the front part of larger arrays, (B, heads, room, D)."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._hold(key_states[:, :, :0], value_states[:, :, :0], 0)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, new = self.get_seq_length(), key_states.shape[-2]
        end = start + new
        if end > self._key_room.shape[-2]:
            room = (self._key_room[:, :, :start], self._value_room[:, :, :start])
            self._hold(*room, new + BLOCK)
        self._key_room[:, :, start:end] = key_states
        self._value_room[:, :, start:end] = value_states
        self.keys = keys = self._key_room[:, :, :end]
        self.values = values = self._value_room[:, :, :end]
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        keys, values = self._key_room[indices, :, :length], self._value_room[indices, :, :length]
        self._hold(keys, values, BLOCK)

    def _hold(self, keys: Tensor, values: Tensor, room: int) -> None:
        """Takes these keys and values over, with room for more behind them."""
        self._key_room, self.keys = _roomy(keys, room)
        self._value_room, self.values = _roomy(values, room)


def _roomy(held: Tensor, room: int) -> tuple[Tensor, Tensor]:
    batch, heads, length, size = held.shape
    array = torch.empty((batch, heads, length + room, size), dtype=held.dtype, device=held.device)
    array[:, :, :length] = held
    return array, array[:, :, :length]
