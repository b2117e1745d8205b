"""Environments: N copies stepped in lockstep behind one small protocol, through two backends.

``make("HalfCheetah-v5", 8)`` steps Gymnasium's MuJoCo v5 tasks on MuJoCo directly, and
``make("CartPole-v1", 8)`` any other Gymnasium environment; both can be saved in the middle of an
episode and continued bit for bit.
"""

from tether.control.envs.check import check_vector_env
from tether.control.envs.protocol import GoesOn, Step, VectorEnv
from tether.control.envs.registry import BATCHED_TASKS, EnvironmentEntry, list_environments
from tether.control.envs.vector import Backend, make

__all__ = [
    "BATCHED_TASKS",
    "Backend",
    "EnvironmentEntry",
    "GoesOn",
    "Step",
    "VectorEnv",
    "check_vector_env",
    "list_environments",
    "make",
]
