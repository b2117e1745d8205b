"""Errors a user can correct, and the one way a run ends early on purpose.

The command line prints a :class:`UserError` as one line and exits with code 2, exits with code 130
on :class:`Interrupted`; anything else is a defect of tether and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in what the user asked for.

    The message names the value, what was expected and how to correct it.
    """


class RunError(UserError):
    """A run folder that cannot be used: missing, foreign, damaged, newer than us, or in use."""


class DamagedCheckpointError(RunError):
    """A checkpoint whose bytes are not the ones that were written; an older one may still load."""


class StoreError(UserError):
    """A store of comparisons that cannot be used: missing, foreign, newer, read-only, full."""


class BadEnvironmentError(UserError):
    """An environment that breaks its contract: unsupported spaces, wrong shapes, NaN or Inf."""


class NonFiniteError(UserError):
    """A loss, parameter or gradient became NaN or Inf; the last good checkpoint is kept."""


class RewardError(UserError):
    """A reward failed or returned something unusable, before anything of the iteration moved."""


class JudgeError(UserError):
    """A judge that failed on something: it gave no usable answer, and so no score."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by SIGINT or SIGTERM after its checkpoint was saved.

    It is a ``KeyboardInterrupt`` so that a sweep that retries on ``Exception`` stops as well.
    """
