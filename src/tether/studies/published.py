"""What others measured after a million steps on the PPO paper's seven tasks; to compare with.

The numbers are not of one kind. Each source says which version of the environments it used, how
many seeds, and whether a score is a curve's end or the best that was passed on the way.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Source(NamedTuple):
    """Where scores come from, and what a score means there."""

    heading: str
    title: str
    versions: str
    seeds: str
    score: str
    scores: dict[str, dict[str, float]]


PAPER: Final = Source(
    "paper",
    "PPO paper, figure 3",
    "v1",
    "3",
    "mean of the last tenth of the curve, read from the picture to about 1 % of its axis; "
    "policies sample",
    {
        "HalfCheetah": {
            "ppo": 1812, "trpo": -89, "a2c": 995, "a2c-tr": 916, "vpg": 576, "cem": -399,
        },
        "Hopper": {
            "ppo": 2150, "trpo": 1982, "a2c": 684, "a2c-tr": 1053, "vpg": 2152, "cem": 487,
        },
        "InvertedDoublePendulum": {
            "ppo": 7317, "trpo": 185, "a2c": 6372, "a2c-tr": 6701, "vpg": 200, "cem": 92,
        },
        "InvertedPendulum": {
            "ppo": 952, "trpo": 880, "a2c": 996, "a2c-tr": 965, "vpg": 989, "cem": 570,
        },
        "Reacher": {
            "ppo": -7.1, "trpo": -116, "a2c": -25, "a2c-tr": -26.5, "vpg": -11.7, "cem": -77,
        },
        "Swimmer": {
            "ppo": 107, "trpo": 121, "a2c": 29, "a2c-tr": 36, "vpg": 61, "cem": 8,
        },
        "Walker2d": {
            "ppo": 3064, "trpo": 954, "a2c": 768, "a2c-tr": 686, "vpg": 1248, "cem": 713,
        },
    },
)  # fmt: skip
"""Schulman et al., "Proximal Policy Optimization Algorithms" (2017), figure 3."""

BASELINES: Final = Source(
    "Baselines",
    "OpenAI Baselines",
    "v2",
    "6",
    "the curve's end; policies sample",
    {
        "HalfCheetah": {"ppo": 1669, "trpo": 1290},
        "Hopper": {"ppo": 2316, "trpo": 1913},
        "InvertedDoublePendulum": {"ppo": 7103, "trpo": 6732},
        "InvertedPendulum": {"ppo": 809, "trpo": 905},
        "Reacher": {"ppo": -6.7, "trpo": -4.8},
        "Swimmer": {"ppo": 111, "trpo": 95},
        "Walker2d": {"ppo": 3425, "trpo": 2343},
    },
)
"""openai/baselines, benchmarks_mujoco1M.htm: ppo2 and trpo_mpi."""

TIANSHOU: Final = Source(
    "Tianshou",
    "Tianshou",
    "v2, v3",
    "10",
    "the best of all evaluations on the way, 10 deterministic episodes each",
    {
        "HalfCheetah": {"ppo": 5784, "trpo": 4471, "a2c": 1830},
        "Hopper": {"ppo": 2609, "trpo": 2046, "a2c": 1253},
        "InvertedDoublePendulum": {"ppo": 9231, "trpo": 8435, "a2c": 9258},
        "InvertedPendulum": {"ppo": 1000, "trpo": 1000, "a2c": 1000},
        "Reacher": {"ppo": -4.1, "trpo": -5.1, "a2c": -6.7},
        "Swimmer": {"ppo": 67, "trpo": 41, "a2c": 37},
        "Walker2d": {"ppo": 3589, "trpo": 3827, "a2c": 1092},
    },
)
"""thu-ml/tianshou, examples/mujoco/README.md."""

TIANSHOU_STD: Final = {
    "HalfCheetah": {"ppo": 1244, "trpo": 805, "a2c": 1068},
    "Hopper": {"ppo": 701, "trpo": 1038, "a2c": 458},
    "InvertedDoublePendulum": {"ppo": 270, "trpo": 1073, "a2c": 277},
    "InvertedPendulum": {"ppo": 0, "trpo": 0, "a2c": 0},
    "Reacher": {"ppo": 0.3, "trpo": 0.8, "a2c": 2.3},
    "Swimmer": {"ppo": 99, "trpo": 20, "a2c": 2},
    "Walker2d": {"ppo": 757, "trpo": 783, "a2c": 709},
}
"""Standard deviations of Tianshou's scores over its seeds."""

SOURCES: Final = (PAPER, BASELINES, TIANSHOU)

TABLE_1: Final = {
    "none": -0.39,
    "clip-0.1": 0.76,
    "clip-0.2": 0.82,
    "clip-0.3": 0.70,
    "adaptive-0.003": 0.68,
    "adaptive-0.01": 0.74,
    "adaptive-0.03": 0.71,
    "fixed-0.3": 0.62,
    "fixed-1": 0.71,
    "fixed-3": 0.72,
    "fixed-10": 0.69,
}
"""Schulman et al. 2017, table 1: mean normalized score over 7 tasks and 3 seeds."""

REWARD_CHANGES: Final = {
    "Hopper": "since v5 the healthy reward is paid only while healthy",
    "InvertedDoublePendulum": "since v5 the last step of a fall is not rewarded, and observations "
    "have 9 numbers in place of 11",
    "InvertedPendulum": "since v5 the last step of a fall is not rewarded",
    "Reacher": "since v5 the reward is that of the state after the step, and observations have no "
    "z distance",
    "Walker2d": "since v5 the healthy reward is paid only while healthy, and both feet have a "
    "friction of 1.9",
}
"""What Gymnasium's version 5 rewards in another way than versions 1 to 4."""


def task(env: str) -> str:
    """The name of a task without its version: HalfCheetah of HalfCheetah-v5."""
    return env.rsplit("-v", 1)[0]
