"""A judge in the loop of RLHF: its score is the reward, and a run finds it again."""

import json
import shutil
from pathlib import Path

import pytest

from tether.errors import UserError
from tether.language.data.tokens import Completion
from tether.language.judge.opening import open_judge
from tether.language.judge.reward import JudgeReward
from tether.language.methods.rlhf.config import RLHFConfig
from tether.language.methods.rlhf.given_rewards import GivenRewards, is_function_name
from tether.language.methods.rlhf.rewards import digests, open_scorer
from tether.language.models.language_model import load_model

NAME = "judge:positive@tiny"
RLHF = (
    "rlhf", "--model", "tiny", "--total-steps", "4", "--batch-size", "4", "--minibatch-size", "4",
    "--max-new-tokens", "4", "--limit", "8", "--quiet",
)  # fmt: skip

ATTRIBUTE = """
name = "liked"
[pointwise]
question = "{prompt}{completion}\\n"
cue = "Liked:"
yes = [" good"]
no = [" bad"]
"""


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_the_reward_is_the_judges_score_of_the_text(tiny):
    scorer = open_scorer(RLHFConfig(reward=(NAME,)), tiny)
    template = [tiny.tokenizer(text, add_special_tokens=False)["input_ids"] for text in
                ("This film", " is good.", " is awful.")]  # fmt: skip
    items = [Completion(tuple(template[0]), tuple(ids)) for ids in template[1:]]
    expected = open_judge("tiny", "positive").score(["This film"] * 2, [" is good.", " is awful."])
    assert scorer(items) == pytest.approx(expected, abs=1e-4)
    assert scorer.names == ("judge.positive",)
    assert digests(scorer, (NAME,)) == {NAME: open_judge("tiny", "positive").digest}


def test_conversations_reach_the_judge_as_turns():
    seen = []
    reward = JudgeReward(NAME)
    judge = reward.open()
    judge.ask = lambda asked: seen.extend(asked) or [judge.backend and _fine()] * len(asked)
    reward([[{"role": "user", "content": "Hi"}]], [[{"role": "assistant", "content": "Yes"}]])
    assert seen[0].prompt[0].content == "Hi" and seen[0].completions == ("Yes",)


def _fine():
    from tether.language.judge.judges import Judgement

    return Judgement(0.5, 1.0)


def test_rlhf_learns_from_a_judge_and_finds_it_again(tether_, tmp_path, monkeypatch):
    (tmp_path / "liked.toml").write_text(ATTRIBUTE)
    done = tether_(*RLHF, "--reward", "judge:liked.toml@tiny", "--out", "run")
    assert done.code == 0, done.err
    spec = json.loads((tmp_path / "run" / "run.json").read_text())
    assert str(tmp_path / "liked.toml") in json.dumps(spec)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    done = tether_("resume", tmp_path / "run", "--total-steps", "8")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[-1]["step"] == 8 and all("reward/mean" in row for row in rows)


def test_a_run_does_not_go_on_with_another_judge(tether_, tmp_path):
    path = tmp_path / "liked.toml"
    path.write_text(ATTRIBUTE)
    assert tether_(*RLHF, "--reward", "judge:liked.toml@tiny", "--out", "run").code == 0
    path.write_text(ATTRIBUTE.replace("Liked:", "Hated:"))
    before = sorted((tmp_path / "run").rglob("*"))
    done = tether_("resume", "run", "--total-steps", "8")
    assert done.code == 2 and "judge" in done.err, done.err
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_file_of_settings_names_a_judge(tmp_path):
    (tmp_path / "mine.toml").write_text('model = "tiny"\nmode = "rating"\nshots = 0\n')
    judge = JudgeReward(f"judge:{tmp_path / 'mine.toml'}").open()
    assert judge.mode == "rating" and judge.name == "tiny/positive/rating-0"


def test_settings_follow_a_name(tmp_path, monkeypatch):
    judge = JudgeReward("judge:positive@tiny,shots=0,detailed=true").open()
    assert judge.name == "tiny/positive/pointwise-0-detailed"
    (tmp_path / "mine.toml").write_text('model = "tiny"\nmode = "rating"\nshots = 0\n')
    monkeypatch.chdir(tmp_path)
    (name,) = GivenRewards.of(["judge:mine.toml,shots=1"]).names
    assert name == f"judge:{tmp_path / 'mine.toml'},shots=1"
    assert JudgeReward(name).open().name == "tiny/positive/rating-1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("judge:positive,shot=0", "unknown key 'shot'; did you mean 'shots'?"),
        ("judge:positive,shots=few", "shots is 'few'; expected a valid integer"),
        ("judge:positive@tiny,model=tiny", "says model twice; expected it once"),
        ("judge:", "names no attribute; expected judge:positive"),
        ("judge:kind", "attribute is 'kind', which is no file and no attribute"),
        ("judge:none.toml", "which is no file|cannot read"),
    ],
)
def test_a_judge_that_is_none_is_refused_before_a_run_is_made(tether_, tmp_path, name, said):
    done = tether_(*RLHF, "--reward", name, "--out", "run")
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert any(part in done.err for part in said.split("|")) and not (tmp_path / "run").exists()


def test_a_judge_of_pairs_is_no_reward(tmp_path):
    (tmp_path / "pairs.toml").write_text('model = "tiny"\nmode = "pairwise"\n')
    with pytest.raises(UserError, match="is a judge of mode pairwise, which scores no single"):
        JudgeReward(f"judge:{tmp_path / 'pairs.toml'}")


def test_a_judge_is_no_function_of_a_module():
    assert not is_function_name("judge:positive")
    assert GivenRewards.of(["judge:positive@tiny"]).names == ("judge:positive@tiny",)


def test_a_folder_is_found_from_elsewhere(tmp_path, monkeypatch):
    from tether.language.models.files import find_folder

    shutil.copytree(find_folder("tiny"), tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    (name,) = GivenRewards.of(["judge:positive@copy"]).names
    assert name == f"judge:positive@{Path('copy').resolve()}"
