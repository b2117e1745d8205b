"""Control: policies learnt in Gymnasium and MuJoCo environments, on JAX.

XLA's own thread pool loses to a single thread on networks of this size (two 64-unit layers), so
the cores are left to the physics and to running the actor's and the critic's updates side by
side. The flags below must be in place before JAX starts; what the user set comes first.
"""

import os

_FLAGS = ("--xla_cpu_multi_thread_eigen=false", "intra_op_parallelism_threads=1")
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [_given, *(flag for flag in _FLAGS if flag.split("=")[0] not in _given)]
).strip()
# Batches of a few dozen rows through 64-unit layers: a GPU would only wait for the host.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
