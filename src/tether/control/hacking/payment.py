"""What an environment pays: the proxy, a proxy without the loophole, or what was meant."""

from __future__ import annotations

from typing import Literal, get_args

Payment = Literal["proxy", "repaired", "true"]


def checked(reward: str) -> Payment:
    """The argument `reward` of an environment.

    Raises:
        ValueError: it is none of the three.
    """
    for known in get_args(Payment):
        if reward == known:
            found: Payment = known
            return found
    raise ValueError(f"reward is {reward!r}; expected one of {', '.join(get_args(Payment))}")


def paid(payment: Payment, proxy: float, repaired: float, true: float) -> float:
    """The one of the three rewards of a step that is paid."""
    if payment == "proxy":
        return proxy
    return repaired if payment == "repaired" else true
