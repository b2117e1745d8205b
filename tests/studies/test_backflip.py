"""The study of flips: its teacher on clips made by hand, its count on motions, a small run."""

import json
from types import SimpleNamespace

import av
import numpy as np
import pytest

from tether.preferences.items import Segment
from tether.studies import backflip, backflip_report


def clip(angles, height=1.25) -> Segment:
    steps = len(angles)
    qpos = np.zeros((steps, 6))
    qpos[:, backflip.HEIGHT], qpos[:, backflip.ANGLE] = height, angles
    return Segment(
        env=backflip.ENV, observation=np.zeros((steps, 11)), action=np.zeros((steps, 3)), qpos=qpos
    )


def test_the_teacher_sees_rotation_and_height_alone() -> None:
    backwards, forwards = clip(np.linspace(0, -np.pi, 60)), clip(np.linspace(0, np.pi, 60))
    assert backflip.worth(backwards) == pytest.approx(0.5)
    assert backflip.better_flip(backwards, forwards) == 1.0
    assert backflip.better_flip(forwards, backwards) == 0.0
    assert backflip.better_flip(backwards, backwards) == 0.5
    # Rolling on the ground is worth as little as standing still, and turning low is worth less.
    rolling, standing = clip(np.linspace(0, -np.pi, 60), height=0.2), clip(np.zeros(60))
    assert backflip.worth(rolling) == backflip.worth(standing) == 0.0
    low = clip(np.linspace(0, -np.pi, 60), height=(backflip.LYING + backflip.UP) / 2)
    assert backflip.worth(low) == pytest.approx(0.25)


class Moved:
    """An environment whose robots are moved by hand."""

    episode_limit = 101

    def __init__(self, angles, heights) -> None:
        self.angles, self.heights, self.t = angles, heights, 0
        self.coordinates = np.zeros((angles.shape[1], 12))

    def reset(self, seed):
        return np.zeros((self.angles.shape[1], 11))

    def step(self, action):
        self.coordinates[:, backflip.ANGLE] = self.angles[self.t]
        self.coordinates[:, backflip.HEIGHT] = self.heights[self.t]
        self.t += 1
        return SimpleNamespace(observation=np.zeros((len(action), 11)))

    def close(self) -> None:
        pass


def test_turns_count_as_landed_once_and_upright_only(monkeypatch) -> None:
    turns = np.linspace(0, 3, 100)
    angles = -2 * np.pi * np.stack([turns, turns, -turns, np.minimum(turns, 1.0)], axis=1)
    heights = np.full((100, 4), 1.2)
    heights[:, 1] = 0.3  # rolls along the ground
    monkeypatch.setattr(backflip, "make", lambda *_, **__: Moved(angles, heights))
    policy = SimpleNamespace(predict=lambda observation: np.zeros((4, 3)))
    seen = backflip.count_flips(policy, 4, seed=0)
    np.testing.assert_allclose(seen.turns, [3, 3, -3, 1])
    assert seen.landed.tolist() == [3, 0, 0, 1]
    assert seen.lying.tolist() == [0, 1, 0, 0]


def test_the_study_trains_counts_and_goes_on(tmp_path, monkeypatch) -> None:
    config = backflip.BackflipConfig(
        labels=8, seeds="1000-1000", steps=8192, episodes=1, measurements=2
    )
    found = backflip.run(config, tmp_path, workers=1)
    assert found == json.loads((tmp_path / "backflip.json").read_text())
    trial = found["trials"]["seed-1000"]
    assert len(trial["turns"]) == 1
    assert trial["curve"][-1][0] == 8192
    assert (tmp_path / "backflip.png").stat().st_size > 5_000
    backflip_report.show(found)
    monkeypatch.setattr(backflip, "train_or_resume", None)
    assert backflip.run(config, tmp_path, workers=1) == found
    [path] = backflip.films(config, tmp_path)
    with av.open(str(path)) as film:
        assert float(film.duration) / av.time_base == pytest.approx(4.0, abs=0.1)
