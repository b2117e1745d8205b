"""How gold reward depends on divergence: Gao et al.'s two forms, and where a curve turns.

    best of n   R(d) = d (alpha - beta d)        peak at d = alpha / (2 beta)
    RL          R(d) = d (alpha - beta ln d)     peak at d = exp(alpha / beta - 1)

with d the square root of KL(policy || reference) in nats, and R counted from the reference. Both
are linear in alpha and beta, which least squares finds.

Source:
    Gao et al., "Scaling laws for reward model overoptimization" (2022), equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Form: TypeAlias = Literal["best-of-n", "rl"]
Row: TypeAlias = Mapping[str, float]


def fit(kl: ArrayLike, reward: ArrayLike, form: Form) -> dict[str, Any] | None:
    """Least squares of one of the forms.

    Args:
        kl: divergences in nats, (N,); points at 0 say nothing and are left out.
        reward: counted from the reference's, (N,).
        form: which.

    Returns:
        ``alpha``, ``beta``; ``r2``, the share of the rewards' squares that the form explains;
        ``peak_kl`` and ``peak``, divergence and reward where the form is highest, None where it
        rises without end; ``seen``, whether a point lies at that divergence or beyond. None with
        fewer than two different divergences.
    """
    d, r = np.sqrt(np.asarray(kl, float)), np.asarray(reward, float)
    d, r = d[d > 0], r[d > 0]
    if len(np.unique(d)) < 2:
        return None
    # Rewards are counted from the reference, so the squares are too.
    columns = _columns(d, form)
    (alpha, beta), *_ = np.linalg.lstsq(columns, r, rcond=None)
    squares = float((r**2).sum())
    missed = float(((r - columns @ [alpha, beta]) ** 2).sum())
    top = _peak(float(alpha), float(beta), form)
    return {
        "alpha": float(alpha),
        "beta": float(beta),
        "r2": 1.0 - missed / squares if squares else None,
        "peak_kl": None if top is None else top**2,
        "peak": None if top is None else float(curve(top**2, alpha, beta, form)),
        "seen": top is not None and bool(top <= d.max()),
    }


def curve(kl: ArrayLike, alpha: float, beta: float, form: Form) -> NDArray[np.float64]:
    """A form's reward at some divergences; 0 at 0."""
    d = np.sqrt(np.asarray(kl, float))
    found: NDArray[np.float64] = _columns(d, form) @ [alpha, beta]
    return found


def turn(rows: Sequence[Row], measure: str) -> float:
    """How much a curve has lost at its end since its peak.

    The highest of several noisy numbers is too high. So the place of the peak is chosen by one half
    of the prompts, and what was lost since is measured on the other half, and the other way round;
    where nothing is lost, the mean is not above 0.

    Args:
        rows: of one training, in order, with ``MEASURE_even`` and ``MEASURE_odd``.
        measure: such as ``truth``.
    """
    return float(
        np.mean([look[choose.argmax()] - look[-1] for choose, look in _halves(rows, measure)])
    )


def early_stop(rows: Sequence[Row], measure: str, patience: int) -> dict[str, float]:
    """What is left of a training that keeps its best policy and stops when it finds no better one.

    One half of the prompts chooses, the other half measures what is kept, and the other way round.

    Args:
        rows: of one training without a stop, as for :func:`turn`.
        measure: what is watched.
        patience: measurements in a row without a new best, after which training ends.

    Returns:
        ``kl``, ``proxy``, ``log_odds``, ``truth`` of what is kept; ``turn``, how much lower it is
        than the peak of the whole training; ``step`` at which training ends. Means of both ways.
    """
    found = []
    for parity, (choose, look) in zip(("odd", "even"), _halves(rows, measure), strict=True):
        kept, last = 0, len(rows) - 1
        for place in range(1, len(rows)):
            if choose[place] > choose[kept]:
                kept = place
            elif place - kept >= patience:
                last = place
                break
        found.append(
            {
                "kl": rows[kept]["kl"],
                "proxy": rows[kept]["proxy"],
                "log_odds": rows[kept][f"log_odds_{parity}"],
                "truth": rows[kept][f"truth_{parity}"],
                "turn": look[choose.argmax()] - look[kept],
                "step": rows[last]["step"],
            }
        )
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def _halves(
    rows: Sequence[Row], measure: str
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    even, odd = (np.array([row[f"{measure}_{half}"] for row in rows]) for half in ("even", "odd"))
    return [(even, odd), (odd, even)]


def _columns(d: NDArray[np.float64], form: Form) -> NDArray[np.float64]:
    if form == "best-of-n":
        return np.stack([d, -(d**2)], axis=-1)
    # d ln d is 0 at 0.
    return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=-1)


def _peak(alpha: float, beta: float, form: Form) -> float | None:
    if beta <= 0:
        return None
    if form == "best-of-n":
        return max(alpha / (2 * beta), 0.0)
    # Far beyond any divergence there is no peak to speak of, nor a float that holds it.
    return float(np.exp(alpha / beta - 1.0)) if alpha / beta < 50 else None
