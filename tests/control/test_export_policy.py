"""Exported policies: a folder that the hub understands, and that acts as the run does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.numpy import load_file
from short_runs import TINY

import tether
from tether.control.training import TrainedPolicy as Trained
from tether.errors import RunError, UserError


@pytest.fixture(scope="module")
def folder(cheetah: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "cheetah"
    exported = tether.export(cheetah.run, to="hf", out=out, episodes=3)
    assert exported.files == ["README.md", "config.json", "policy.safetensors", "replay.mp4"]
    return out


def test_the_folder_acts_as_the_run_does(cheetah: Trained, folder: Path) -> None:
    policy, original = tether.load(folder), tether.load(cheetah.run)
    observations = np.random.default_rng(0).normal(size=(50, 17))
    np.testing.assert_array_equal(policy.predict(observations), original.predict(observations))
    assert policy.predict(observations).std() > 0
    # An ordinary safetensors file, which any reader opens.
    arrays = load_file(folder / "policy.safetensors")
    name = next(name for name in arrays if name.endswith("dense/0/weight"))
    np.testing.assert_array_equal(arrays[name], original.parameters.network.dense[0].weight)


def test_the_card_says_what_the_hub_wants_to_know(cheetah: Trained, folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "tether-rl"
    assert {"HalfCheetah-v5", "reinforcement-learning", "ppo"} <= set(data["tags"])
    truth = tether.evaluate_run(cheetah.run, episodes=3).returns
    (result,) = card.data.eval_results or []
    assert (result.task_type, result.dataset_type) == ("reinforcement-learning", "HalfCheetah-v5")
    assert result.metric_type == "mean_reward"
    assert result.metric_value == f"{truth.mean():.2f} +/- {truth.std():.2f}"
    assert model_index_to_eval_results(data["model-index"])[0] == "ppo"
    # The run's own settings and last measurements, as metrics.jsonl has them.
    row = json.loads((cheetah.run / "metrics.jsonl").read_text().splitlines()[-1])
    assert "| minibatch_size | 32 |" in card.text
    assert f"| value/loss | {row['value/loss']:.6g} |" in card.text
    assert "time/" not in card.text


def test_the_film_shows_one_episode(folder: Path) -> None:
    with av.open(str(folder / "replay.mp4")) as film:
        frames = sum(1 for _ in film.decode(video=0))
    assert 10 < frames <= 26  # of 25 steps, every one or every second


def test_the_settings_are_those_of_the_run(cheetah: Trained, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    record = json.loads((cheetah.run / "run.json").read_text())
    assert (config["method"], config["env"], config["seed"]) == ("ppo", "HalfCheetah-v5", 3)
    assert config["steps"] == 512
    assert config["settings"] == record["config"]
    assert config["policy"] == record["spec"]["policy"]


def test_an_environment_that_cannot_be_drawn_leaves_no_film(
    pairs: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exported = tether.export(pairs.run, to="hf", out=tmp_path / "out", episodes=2)
    assert exported.files == ["README.md", "config.json", "policy.safetensors"]
    assert exported.facts["film"] is False
    assert "the film is left out: " in capfd.readouterr().err
    assert "replay.mp4" not in (tmp_path / "out" / "README.md").read_text()


def test_without_episodes_there_is_no_score(pairs: Trained, tmp_path: Path) -> None:
    tether.export(pairs.run, to="hf", out=tmp_path / "out", episodes=0)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.eval_results is None


def test_onnx_of_a_run_acts_in_its_environment(cheetah: Trained, tmp_path: Path) -> None:
    exported = tether.export(cheetah.run, to="onnx", out=tmp_path / "out")
    assert exported.files == ["README.md", "policy.onnx"]
    assert exported.facts["checked"] == 1000
    assert exported.facts["largest_difference"] < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "out" / "policy.onnx")
    env = gym.make("HalfCheetah-v5")
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        (action,) = session.run(["action"], {"observation": observation[None]})
        np.testing.assert_allclose(action[0], cheetah.policy.predict(observation), atol=1e-5)
        observation, *_ = env.step(action[0])
    env.close()


def test_a_run_of_a_function_asks_for_it(tmp_path: Path) -> None:
    def make() -> gym.Env:
        return gym.make("CartPole-v1", max_episode_steps=10)

    run = tether.train("ppo", make, total_steps=128, out=tmp_path / "run", **TINY).run
    with pytest.raises(UserError, match=r"was made from a function.*episodes 0"):
        tether.export(run, to="hf", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    exported = tether.export(run, to="hf", out=tmp_path / "out", env=make, episodes=2)
    assert exported.facts["evaluation"]["episodes"] == 2
    assert exported.facts["evaluation"]["length_mean"] <= 10


@pytest.mark.parametrize("damage", ["missing", "not JSON", "newer", "other", "flipped"])
def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = copy / "config.json"
    content = json.loads(config.read_text())
    if damage == "missing":
        config.unlink()
    elif damage == "not JSON":
        config.write_text("{")
    elif damage == "newer":
        config.write_text(json.dumps({**content, "format": 2}))
    elif damage == "other":
        config.write_text(json.dumps({**content, "policy": {}}))
    else:
        file = copy / "policy.safetensors"
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    with pytest.raises(RunError) as caught:
        tether.load(copy)
    assert "\n" not in str(caught.value)
