"""What demonstrations are read from, and what is said of those that cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain_environment import Chain
from demonstrators import chain_folder, damage, write
from gymnasium import spaces
from toy_environments import CopyDict

import tether
from tether.control.demonstrations import EPISODES, Recorder, load_demonstrations
from tether.control.distributions import action_head
from tether.control.envs.spaces import flatten_observation
from tether.control.minari_dataset import flatten_batch
from tether.errors import UserError

QUIET: dict[str, Any] = {"progress": False, "sinks": ()}


@pytest.mark.parametrize(
    "space", [spaces.Discrete(4, start=-1), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3),
              spaces.Box(-1, 1, (2,))], ids=repr)  # fmt: skip
def test_actions_come_back_as_a_policy_stores_them(space: spaces.Space) -> None:
    head = action_head(space)
    space.seed(0)
    given = np.array([space.sample() for _ in range(20)])
    stored = head.from_environment(given)
    assert stored.shape == (20, *head.shape)
    assert stored.dtype == head.dtype
    if head.sizes:
        assert stored.min() == 0
        assert (stored.max(0) == np.array(head.sizes) - 1).all()
    np.testing.assert_array_equal(head.to_environment(stored), given)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("form", ["hdf5", "arrow", "parquet"])
def test_minari_datasets_are_read(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    import minari
    from minari.data_collector import EpisodeBuffer

    env = CopyDict()
    rng = np.random.default_rng(0)
    buffers, seen, done = [], [], []
    for n, steps in enumerate((4, 7)):
        rows = [env.observation_space.sample() for _ in range(steps + 1)]
        actions = [env.action_space.sample() for _ in range(steps)]
        seen += rows[:-1]
        done += actions
        stacked = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        buffers.append(
            EpisodeBuffer(
                id=n,
                observations=stacked,
                actions=np.array(actions),
                rewards=list(rng.random(steps)),
                terminations=[False] * steps,
                truncations=[False] * (steps - 1) + [True],
                infos={},
            )
        )
    minari.create_dataset_from_buffers(
        "copy/expert-v0", buffers, observation_space=env.observation_space,
        action_space=env.action_space, data_format=form, algorithm_name="known", author="known",
        author_email="known@example.org", code_permalink="https://example.org",
    )  # fmt: skip
    folder = tmp_path / "copy" / "expert-v0"
    head = action_head(env.action_space)
    for place in (folder, folder / "data"):
        pairs = load_demonstrations(place, env.observation_space, head)
        truth = [flatten_observation(env.observation_space, row) for row in seen]
        np.testing.assert_array_equal(pairs.observation, np.array(truth))
        assert pairs.observation.dtype == np.array(truth).dtype
        np.testing.assert_array_equal(pairs.action, done)
        np.testing.assert_array_equal(pairs.length, [4, 7])
    with pytest.raises(UserError, match=r"have the action space MultiDiscrete\(\[3 2\].*Discrete"):
        load_demonstrations(folder, env.observation_space, action_head(spaces.Discrete(3)))
    if form == "hdf5":
        settings = {"demonstrations": folder, "evaluation_episodes": 0, **QUIET}
        assert (
            tether.train("bc", CopyDict, total_steps=1, out=tmp_path / "run", **settings).metrics[
                "imitation/held_out_loss"
            ]
            > 0
        )
    # Cut off, and without its spaces.
    for file in folder.glob("data/**/*"):
        if file.is_file() and file.suffix != ".json":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read as a Minari dataset") as caught:
        load_demonstrations(folder, env.observation_space, head)
    assert "\n" not in str(caught.value)
    (folder / "data" / "metadata.json").write_text('{"env_spec": "{}"}')
    with pytest.raises(UserError, match="do not record their spaces"):
        load_demonstrations(folder, env.observation_space, head)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("shapes", [[(1,)], [(3,)], [(2,), (3,)]])
def test_minari_actions_of_another_shape_are_refused(
    shapes: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    import minari
    from minari.data_collector import EpisodeBuffer

    see, act = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))
    buffers = [
        EpisodeBuffer(
            id=n, observations=np.zeros((5, 3), np.float32), actions=np.zeros((4, *shape)),
            rewards=[0.0] * 4, terminations=[False] * 4, truncations=[False] * 3 + [True], infos={},
        )
        for n, shape in enumerate(shapes)
    ]  # fmt: skip
    minari.create_dataset_from_buffers(
        "odd/actions-v0", buffers, observation_space=see, action_space=act, data_format="hdf5",
        algorithm_name="known", author="known", author_email="known@example.org",
        code_permalink="https://example.org",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"action of episode \d has shape \(\d,\).* \(2,\)"):
        load_demonstrations(tmp_path / "odd" / "actions-v0", see, action_head(act))


def test_actions_out_of_their_bounds_are_refused(tmp_path: Path) -> None:
    see, act = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))

    def folder(name: str, greatest: float) -> Path:
        actions = np.zeros((5, 2), np.float32)
        actions[3, 1] = greatest
        return write(tmp_path / name, see, act, [(np.zeros((5, 3), np.float32), actions)] * 2)

    load_demonstrations(folder("rounded", 1 + 1e-7), see, action_head(act))
    with pytest.raises(
        UserError, match=r"action 3 of episode 0 is \[.*7.*outside of Box"
    ) as caught:
        load_demonstrations(folder("wild", 7.0), see, action_head(act))
    assert "\n" not in str(caught.value)


def test_batches_of_nested_observations_are_flattened_row_by_row() -> None:
    space = spaces.Dict({
        "a": spaces.Discrete(3, start=2),
        "b": spaces.Tuple([spaces.MultiDiscrete([2, 4], start=[1, 0]), spaces.Box(-1, 1, (2, 2))]),
        "c": spaces.MultiBinary(3),
    })  # fmt: skip
    space.seed(0)
    rows = [space.sample() for _ in range(9)]
    stacked = {
        "a": np.array([row["a"] for row in rows]),
        "b": tuple(np.array([row["b"][i] for row in rows]) for i in range(2)),
        "c": np.array([row["c"] for row in rows]),
    }
    truth = [flatten_observation(space, row) for row in rows]
    np.testing.assert_array_equal(flatten_batch(space, stacked), truth)
    image = spaces.Box(0, 255, (6, 7), np.uint8)
    assert flatten_batch(image, np.zeros((5, 6, 7), np.uint8)).shape == (5, 6, 7, 1)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", r"cannot be used: .*episodes.safetensors is damaged: its checksum"),
        ("missing", r"cannot be used: cannot read .*episodes.safetensors: No such file"),
        ("facts", r"demonstrations.json is damaged: JSONDecodeError"),
        ("list", r"d: demonstrations.json is damaged: it is not a JSON object"),
        ("future", r"d: they have format 7; this tether reads 1"),
        ("nan", r"observation 3 of episode 2 holds nan; leave the episode out"),
        ("ragged", r"are ragged: 49 rows of action for 50 steps"),
        ("empty", r"are empty: expected at least one episode"),
        ("empty episode", r"episode 10 is empty; leave it out"),
        ("choice", r"action 2 of episode 1 is 2, which is not in Discrete\(2\)"),
        ("fraction", r"action 0 of episode 0 is 0.5, which is not in Discrete\(2\)"),
        ("narrow", r"each observation has shape \(4,\), its space promises \(5,\)"),
        ("no action", r"have no action in episodes.safetensors"),
    ],
)
def test_bad_demonstrations_are_told_in_one_line(tmp_path: Path, how: str, words: str) -> None:
    folder = chain_folder(tmp_path / "d")
    load_demonstrations(folder, Chain.observation_space, action_head(Chain.action_space))
    damage(folder, how)
    with pytest.raises(UserError, match=words) as caught:
        tether.train("bc", Chain, demonstrations=folder, out=tmp_path / "r", **QUIET)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_path_that_cannot_even_be_looked_at_is_told() -> None:
    path = "x" * 300
    head = action_head(Chain.action_space)
    with pytest.raises(UserError, match=r"cannot read demonstrations x+: File name too long"):
        load_demonstrations(path, Chain.observation_space, head)
    with pytest.raises(UserError, match=r"cannot use --record x+: File name too long"):
        Recorder(path)


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tether.control.demonstrations as module

    def full(path: Path) -> None:
        # The episodes are there already when the disk fills up.
        assert (path.parent / EPISODES).stat().st_size > 1000
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "replaced", full)
    with pytest.raises(UserError, match=r"cannot write .*d: the disk is full"):
        chain_folder(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []
