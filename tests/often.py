"""The `tether` command with a checkpoint every 512 steps instead of every minute.

The crash tests kill it: between two checkpoints, and in the middle of one.
"""

import functools
import signal
import sys

from tether.cli import main
from tether.learning import Run

if __name__ == "__main__":
    # A background job's SIGINT is ignored, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    often = functools.partialmethod(Run.train, checkpoint_every=512, checkpoint_every_seconds=None)
    Run.train = often  # type: ignore[method-assign, assignment]
    sys.exit(main())
