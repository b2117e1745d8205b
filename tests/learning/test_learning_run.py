"""The run folder and the loop, in one process."""

import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from least_squares_learner import BATCH, LeastSquares

from tether.errors import NonFiniteError, RunError, UserError
from tether.learning import BaseCallback, Run, load_checkpoint, read_metrics

QUIET = {"progress": False, "sinks": (), "checkpoint_every_seconds": None}


def make(path: Path) -> Run:
    return Run.create(path, method="least-squares", config={"seed": 7}, spec={"rows": [1, 2]})


def without_time(path: Path) -> list[dict]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines
    ]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run stopped at 400 of 800 steps, with checkpoints at 320 and 400."""
    run = make(tmp_path / "run")
    run.train(LeastSquares(7), 400, checkpoint_every=80, **QUIET)
    return run.path


@pytest.fixture
def straight(tmp_path: Path) -> Path:
    """The same run, never stopped."""
    run = make(tmp_path / "straight")
    run.train(LeastSquares(7), 800, checkpoint_every=80, **QUIET)
    return run.path


def finish(path: Path) -> Run:
    run = Run.open(path)
    learner = LeastSquares(7)
    run.resume(learner)
    run.train(learner, 800, checkpoint_every=80, **QUIET)
    return run


def assert_same_run(one: Path, other: Path) -> None:
    assert without_time(one) == without_time(other)
    a, b = Run.open(one).load(), Run.open(other).load()
    assert a["weight"].tobytes() == b["weight"].tobytes()
    assert a["random"] == b["random"]
    assert a["steps"] == b["steps"]


def test_a_new_run_knows_what_it_is(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b").close()
    run = Run.open(tmp_path / "a" / "b")
    assert (run.method, run.config, run.spec) == ("least-squares", {"seed": 7}, {"rows": [1, 2]})
    assert run.created.endswith("+00:00")
    assert run.checkpoints() == []
    with pytest.raises(RunError, match="no checkpoint yet"):
        run.load()


def test_the_config_a_new_run_shows_is_the_one_a_reader_will_see(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", method="m", config={"sizes": (64, 64)}, spec={})
    assert run.config == Run.open(run.path).config == {"sizes": [64, 64]}


def test_settings_that_are_not_json_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    for config in ({"f": print}, {"x": math.nan}):
        with pytest.raises(UserError, match="config cannot be written as JSON"):
            Run.create(tmp_path / "r", method="m", config=config, spec={})
    assert not (tmp_path / "r").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(RunError, match=r"is not empty \(it has metrics.jsonl\).*tether resume"):
        make(trained)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        make(tmp_path / "file")
    # The refusal keeps no lock.
    finish(trained)


def test_debris_of_a_process_that_died_while_creating_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in (".lock", ".lock.pid", "run.json.tmp"):
        (tmp_path / name).write_text("half")
    make(tmp_path).train(LeastSquares(7), 80, **QUIET)
    assert len(read_metrics(tmp_path)) == 10


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "is not a run of tether: it has no run.json"),
        ("", "is damaged: it is not JSON"),
        ("\xff\xfe", "is damaged"),
        ("[" * 100000, "is damaged: it is not JSON"),
        ("[]", "is damaged: the whole"),
        ('{"format": 1}', "is damaged: tether"),
        ('{"format": "x", "method": 3}', "is damaged: format"),
        ('{"format": 2, "tether": "9.1"}', r"format 2 \(tether 9.1\), newer than the 1.*upgrade"),
    ],
)
def test_foreign_damaged_and_newer_folders_are_refused_in_one_line(
    tmp_path: Path, content: str | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match=expected) as caught:
        Run.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run folder .*none"):
        Run.open(tmp_path / "none")


def test_training_writes_every_iteration_and_keeps_the_newest_checkpoints(straight: Path) -> None:
    rows = read_metrics(straight)
    assert [row["step"] for row in rows] == list(range(BATCH, 801, BATCH))
    assert [path.name for path in Run.open(straight).checkpoints()] == [
        "step_000000000800.safetensors",
        "step_000000000720.safetensors",
    ]
    seconds = [row["time/seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(row["time/steps_per_second"] > 0 for row in rows)


@pytest.mark.parametrize(("keep", "every"), [(1, 80), (3, 50), (5, 8)])
def test_checkpoints_come_by_steps_and_as_many_stay_as_asked(
    tmp_path: Path, keep: int, every: int
) -> None:
    seen = []

    class Watch(BaseCallback):
        def on_checkpoint(self, run: Run, path: Path) -> None:
            seen.append(load_checkpoint(path)[1]["steps"])

    run = make(tmp_path / "r")
    run.train(
        LeastSquares(7), 400, checkpoint_every=every, keep_checkpoints=keep, callbacks=[Watch()],
        **QUIET,
    )  # fmt: skip
    passed = {-(-multiple // BATCH) * BATCH for multiple in range(every, 401, every)}
    assert seen == sorted(passed | {400})
    assert len(run.checkpoints()) == keep


def test_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    seen = []

    class Watch(BaseCallback):
        def on_checkpoint(self, run: Run, path: Path) -> None:
            seen.append(path)

    for seconds in (0.0, 3600.0):
        seen.clear()
        make(tmp_path / str(seconds)).train(
            LeastSquares(7), 80, checkpoint_every_seconds=seconds, callbacks=[Watch()],
            progress=False, sinks=(),
        )  # fmt: skip
        assert len(seen) == (10 if seconds == 0.0 else 1)


def test_a_resumed_run_equals_one_that_never_stopped(trained: Path, straight: Path) -> None:
    finish(trained)
    assert_same_run(trained, straight)
    rows = read_metrics(trained)
    assert rows[-1]["time/seconds"] > rows[49]["time/seconds"]


def test_training_on_in_the_same_process_needs_no_resume(tmp_path: Path, straight: Path) -> None:
    run, learner = make(tmp_path / "r"), LeastSquares(7)
    run.train(learner, 160, **QUIET)
    run.train(learner, 800, **QUIET)
    assert_same_run(run.path, straight)


def test_a_finished_run_has_nothing_left_to_do(straight: Path) -> None:
    before = (straight / "metrics.jsonl").read_bytes()
    run, learner = Run.open(straight), LeastSquares(7)
    assert run.resume(learner) == 800
    assert run.train(learner, 800, **QUIET) == {}
    assert run.outcome == "done"
    assert (straight / "metrics.jsonl").read_bytes() == before


def test_metrics_beyond_the_checkpoint_are_cut_also_in_the_middle_of_a_line(
    trained: Path, straight: Path
) -> None:
    with (trained / "metrics.jsonl").open("a") as file:
        file.write('{"step": 408, "loss/value": 1.0}\n{"step": 416, "lo')
    (trained / "checkpoints" / "step_000000000480.safetensors.tmp").write_text("half a checkpoint")
    finish(trained)
    assert_same_run(trained, straight)
    assert not list((trained / "checkpoints").glob("*.tmp"))


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, straight: Path
) -> None:
    make(tmp_path / "r").close()
    (tmp_path / "r" / "metrics.jsonl").write_text('{"step": 8}\n{"st')
    finish(tmp_path / "r")
    assert_same_run(tmp_path / "r", straight)


def test_progress_on_the_disk_must_be_resumed_before_training(trained: Path) -> None:
    run = Run.open(trained)
    with pytest.raises(RunError, match=r"has progress already; pass the learner to run.resume"):
        run.train(LeastSquares(7), 800, **QUIET)


def test_a_run_trained_elsewhere_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    run, learner = make(tmp_path / "r"), LeastSquares(7)
    run.train(learner, 160, **QUIET)
    finish(tmp_path / "r")
    with pytest.raises(RunError, match="has changed since this run was opened"):
        run.train(learner, 800, **QUIET)


def test_a_damaged_checkpoint_at_any_length_falls_back_to_the_one_before(
    trained: Path, straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = trained / "checkpoints" / "step_000000000400.safetensors"
    content = newest.read_bytes()
    for length in range(len(content)):
        newest.write_bytes(content[:length])
        caplog.clear()
        assert Run.open(trained).load()["steps"] == 320
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert str(newest) in caplog.text
        assert "looking for an earlier one" in caplog.text
    finish(trained)
    assert_same_run(trained, straight)
    names = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert names == [
        "step_000000000400.safetensors.damaged",
        "step_000000000720.safetensors",
        "step_000000000800.safetensors",
    ]


def test_a_good_checkpoint_without_a_position_counts_as_damaged(trained: Path) -> None:
    older, newest = sorted((trained / "checkpoints").iterdir())
    shutil.copy(older, newest)
    from tether.learning import save_checkpoint

    save_checkpoint(newest, Run.open(trained).load(), {"steps": "many"})
    assert Run.open(trained).load()["steps"] == 320


def test_a_checkpoint_deleted_while_we_read_sends_us_to_look_again(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newest = sorted((trained / "checkpoints").iterdir())
    content = older.read_bytes()

    def overtaken(path: Path) -> object:
        if newest.exists():
            # What a trainer does between our listing and our reading: a newer one, an older gone.
            newest.rename(newest.with_name("step_000000000480.safetensors"))
        return load_checkpoint(path)

    monkeypatch.setattr("tether.learning.storage.folder.load_checkpoint", overtaken)
    assert Run.open(trained).load()["steps"] == 400
    assert older.read_bytes() == content


def test_all_checkpoints_damaged_is_an_error_that_changes_nothing(trained: Path) -> None:
    for path in (trained / "checkpoints").iterdir():
        path.write_bytes(b"rot")
    before = (trained / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"every checkpoint of .* is damaged") as caught:
        Run.open(trained).resume(LeastSquares(7))
    assert "step_000000000400" in str(caught.value)
    assert "step_000000000320" in str(caught.value)
    assert (trained / "metrics.jsonl").read_bytes() == before
    assert len(list((trained / "checkpoints").iterdir())) == 2


def test_lost_metrics_are_told_and_do_not_stop_a_run(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (trained / "metrics.jsonl").read_bytes()
    (trained / "metrics.jsonl").write_bytes(content[: len(content) // 2])
    finish(trained)
    assert "shorter than the checkpoint recorded" in caplog.text
    rows = read_metrics(trained)
    assert [row["step"] for row in rows][-50:] == list(range(408, 801, 8))


def test_a_learner_that_fails_keeps_the_last_good_checkpoint(
    tmp_path: Path, straight: Path
) -> None:
    run, learner = make(tmp_path / "r"), LeastSquares(7, fail_at=200)
    with pytest.raises(NonFiniteError, match="nan at step 200"):
        run.train(learner, 800, checkpoint_every=80, **QUIET)
    assert run.outcome == "failed"
    assert run.load()["steps"] == 160
    assert all(path.suffix == ".safetensors" for path in (run.path / "checkpoints").iterdir())
    assert [row["step"] for row in read_metrics(run.path)] == list(range(8, 201, 8))
    with pytest.raises(RunError, match=r"pass the learner to run.resume first"):
        run.train(learner, 800, **QUIET)
    finish(run.path)
    assert_same_run(run.path, straight)


def test_a_learner_that_does_not_restore_itself_is_found_out(trained: Path) -> None:
    class Forgetful(LeastSquares):
        def restore(self, state: object) -> None:
            self.weight = np.zeros(3)

    with pytest.raises(RuntimeError, match="is at step 0 after restoring a checkpoint of step"):
        Run.open(trained).resume(Forgetful(7))
    finish(trained)


def test_steps_that_fall_are_a_defect_of_the_learner(tmp_path: Path) -> None:
    class Backwards(LeastSquares):
        def iterate(self) -> dict:
            self._steps -= 1
            return {}

    with pytest.raises(RuntimeError, match="steps fell from 0 to -1"):
        make(tmp_path / "r").train(Backwards(7), 80, **QUIET)


def test_a_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    with pytest.raises(RunError, match="in use by process"):
        Run.open(run.path).resume(LeastSquares(7))
    run.close()
    Run.open(run.path).resume(LeastSquares(7))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every is 0, expected at least 1"),
        ({"checkpoint_every_seconds": -1.0}, "checkpoint_every_seconds is -1.0"),
        ({"checkpoint_every_seconds": math.nan}, "checkpoint_every_seconds is nan"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0, expected at least 1"),
        ({"sinks": ("tensorbord",)}, "unknown metrics sink 'tensorbord'.*tensorboard, trackio"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict, expected: str) -> None:
    run = make(tmp_path / "r")
    with pytest.raises(UserError, match=expected):
        run.train(LeastSquares(7), 80, **(QUIET | arguments))
    run.train(LeastSquares(7), 80, **QUIET)
