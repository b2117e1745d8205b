"""Learning: one loop for every method.

A :class:`Learner` does one unit of learning at a time and can say and take up its whole state; a
:class:`Run` owns a folder and drives any learner: budget, progress, metrics, checkpoints,
callbacks, signals, and resuming bit for bit.
"""

from tether.learning.callbacks import BaseCallback, Callback, Every, StopOnReturn
from tether.learning.config import Config
from tether.learning.learner import Learner, Metrics, State, StateValue
from tether.learning.output.metrics import read_metrics
from tether.learning.run import Run
from tether.learning.storage.checkpoint import load_checkpoint, save_checkpoint

__all__ = [
    "BaseCallback",
    "Callback",
    "Config",
    "Every",
    "Learner",
    "Metrics",
    "Run",
    "State",
    "StateValue",
    "StopOnReturn",
    "load_checkpoint",
    "read_metrics",
    "save_checkpoint",
]
