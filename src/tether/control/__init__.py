"""Control: policies learnt in Gymnasium and MuJoCo environments, on JAX."""

import os
import sys

from tether.errors import UserError

_FLAG = "--xla_cpu_multi_thread_eigen"


def configure_jax() -> None:
    """Set JAX up for this process as the `tether` command does for its own.

    As a library tether leaves JAX's settings alone: what it learns it computes on the CPU, and the
    program around it keeps its GPU. Two settings of the whole process suit it better, and a program
    that uses JAX for nothing else may want them:

    * `JAX_PLATFORMS=cpu`, unless it is set: no GPU is looked for, which makes the start quicker.
    * `XLA_FLAGS=--xla_cpu_multi_thread_eigen=false`, unless it is set: XLA's own thread pool loses
      to a single thread on networks of this size (two 64-unit layers), so the cores are left to the
      physics and to running the actor's and the critic's updates side by side.

    Call it before JAX is imported, since JAX reads both when it starts. Processes that this one
    starts later inherit them.

    Raises:
        UserError: JAX is imported already.
    """
    if "jax" in sys.modules:
        raise UserError(
            "configure_jax() came after `import jax`, which has read its settings by then; call "
            "tether.control.configure_jax() first"
        )
    given = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in given:
        os.environ["XLA_FLAGS"] = f"{given} {_FLAG}=false".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
