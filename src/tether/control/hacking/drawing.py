"""Pictures of gridworlds, as arrays (height, width, 3) of uint8."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]


def canvas(rows: int, columns: int, size: int, colour: Colour) -> np.ndarray:
    """A picture of one colour, `size` pixels to a cell."""
    return np.full((rows * size, columns * size, 3), colour, np.uint8)


def disc(picture: np.ndarray, row: float, column: float, radius: float, colour: Colour) -> None:
    """Paints a disc around a pixel."""
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    picture[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = colour
