"""What survives kill -9, Ctrl-C, a full disk and a second process."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from least_squares_learner import LeastSquares
from test_learning_run import assert_same_run, make, without_time

from tether.errors import Interrupted, RunError
from tether.learning import BaseCallback, Run, read_metrics

CHILD = str(Path(__file__).with_name("least_squares_learner.py"))
QUIET = {"progress": False, "sinks": (), "checkpoint_every_seconds": None}


def start(path: Path, total: int, every: int, *more: object) -> subprocess.Popen[str]:
    """Starts a child that trains, and waits until it is about to iterate."""
    child = subprocess.Popen(
        [sys.executable, CHILD, str(path), str(total), str(every), *map(str, more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line == "ready\n", child.communicate()[1]
    return child


def test_killed_at_any_moment_and_resumed_equals_never_stopped(tmp_path: Path) -> None:
    endless, every, chance = 100_000_000, 160, random.Random(0)
    path = tmp_path / "killed"
    kills, positions = 0, set()
    while kills < 24:
        child = start(path, endless, every)
        time.sleep(chance.uniform(0.0, 0.12))
        assert child.poll() is None, child.communicate()[1]
        child.kill()
        child.communicate()
        kills += 1
        if (path / "metrics.jsonl").exists():
            positions.add((path / "metrics.jsonl").stat().st_size)
    # The kills must have met the run in different places, or they would prove little.
    assert len(positions) >= 12
    total = int(read_metrics(path)[-1]["step"]) + 4000
    child = start(path, total, every)
    assert child.wait(60) == 0, child.communicate()[1]
    child.communicate()
    straight = make(tmp_path / "straight")
    straight.train(LeastSquares(7), total, **QUIET)
    assert_same_run(path, straight.path)


def test_killed_runs_leave_tensorboard_without_the_forgotten_future(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "r"
    run, learner = make(path), LeastSquares(7)
    run.train(learner, 80, progress=False)

    class Die(BaseCallback):
        def on_iteration(self, run: Run, learner: LeastSquares, metrics: dict) -> None:
            metrics["loss/value"] = -1.0
            if learner.steps == 120:
                raise RuntimeError("killed")

    # Events at 88 to 112 are written and then forgotten: the last checkpoint is at 80.
    with pytest.raises(RuntimeError, match="killed"):
        run.train(learner, 160, progress=False, callbacks=[Die()], checkpoint_every_seconds=None)
    run, learner = Run.open(path), LeastSquares(7)
    assert run.resume(learner) == 80
    run.train(learner, 160, progress=False)
    assert len(list((path / "tensorboard").iterdir())) == 3
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = events.Scalars("loss/value")
    assert [event.step for event in scalars] == list(range(8, 161, 8))
    for event, row in zip(scalars, read_metrics(path), strict=True):
        assert event.value == pytest.approx(row["loss/value"], rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    path = tmp_path / "run with space"
    child = start(path, 10_000_000, 8_000_000, "0.001")
    time.sleep(0.2)
    child.send_signal(number)
    error = child.communicate(timeout=20)[1]
    assert child.returncode == 130
    last = error.strip().splitlines()[-1]
    assert last.startswith("interrupted at step ")
    assert last.endswith(f"checkpoint saved; go on with: tether resume '{path}'")
    rows = read_metrics(path)
    assert Run.open(path).load()["steps"] == rows[-1]["step"] > 0
    run, learner = Run.open(path), LeastSquares(7)
    total = run.resume(learner) + 800
    run.train(learner, total, **QUIET)
    straight = make(tmp_path / "straight")
    straight.train(LeastSquares(7), total, **QUIET)
    assert_same_run(path, straight.path)


def test_a_second_ctrl_c_aborts_at_once(tmp_path: Path) -> None:
    child = start(tmp_path / "r", 80, 80, "30")
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    assert child.stderr is not None
    assert child.stderr.readline() == "\n"
    assert child.stderr.readline().startswith("stopping: finishing this iteration")
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    error = child.communicate(timeout=20)[1]
    assert time.monotonic() - began < 10
    assert child.returncode != 0
    assert error.strip().endswith("KeyboardInterrupt")
    assert Run.open(tmp_path / "r").checkpoints() == []


class Signal(BaseCallback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_iteration(self, run: Run, learner: LeastSquares, metrics: dict) -> None:
        if learner.steps == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def ordinary_signals():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ordinary_signals")
def test_handlers_come_back_and_the_iteration_under_way_is_finished(tmp_path: Path, capfd) -> None:
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    run, learner = make(tmp_path / "r"), LeastSquares(7)
    with pytest.raises(Interrupted, match="interrupted at step 80; checkpoint saved"):
        run.train(learner, 800, callbacks=[Signal(80)], **QUIET)
    assert run.outcome == "interrupted"
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == before
    assert capfd.readouterr().err.count("tether resume") == 1
    assert learner.steps == run.load()["steps"] == read_metrics(run.path)[-1]["step"] == 80
    run.train(learner, 160, **QUIET)
    assert len(read_metrics(run.path)) == 20


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = make(tmp_path / "r")
        run.train(LeastSquares(7), 160, callbacks=[Signal(80)], **QUIET)
        assert run.outcome == "done"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_made_here_can_be_trained_in_another_thread(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    thread = threading.Thread(target=run.train, args=(LeastSquares(7), 80), kwargs=QUIET)
    thread.start()
    thread.join()
    assert run.outcome == "done"
    assert len(without_time(run.path)) == 10


def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    child = start(tmp_path / "r", 10_000_000, 80_000, "0.001")
    try:
        time.sleep(0.1)
        run = Run.open(tmp_path / "r")
        for attempt in (lambda: run.resume(LeastSquares(7)), lambda: make(tmp_path / "r")):
            with pytest.raises(RunError, match=f"{run.path} is in use by process {child.pid};"):
                attempt()
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()
    # A killed holder holds nothing.
    Run.open(tmp_path / "r").resume(LeastSquares(7))


def test_a_run_can_be_read_while_it_is_trained(tmp_path: Path) -> None:
    child = start(tmp_path / "r", 10_000_000, 8)
    try:
        deadline = time.monotonic() + 10
        seen: set[object] = set()
        while len(seen) < 20 and time.monotonic() < deadline:
            run = Run.open(tmp_path / "r")
            if run.checkpoints():
                seen.add(run.load()["steps"])
                assert all("loss/value" in row for row in read_metrics(run.path))
        assert len(seen) == 20
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()


def small_disk(folder: Path) -> bool:
    """Puts a 256 KiB file system on a folder; False where that takes rights we lack."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        return False
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    mounted = small_disk(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        run, learner = make(folder / "r"), LeastSquares(7)
        run.train(learner, 80, **QUIET)
        good = run.checkpoints()[0].read_bytes()
        if not mounted:
            # Without the right to mount: no file may grow beyond 64 KiB.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(RunError, match=r"the disk is full|File too large") as caught:
            run.train(learner, 80_000, checkpoint_every=4000, **QUIET)
        assert "\n" not in str(caught.value)
        assert not list(run.path.glob("checkpoints/*.tmp"))
        rows = read_metrics(run.path)
        assert (run.path / "metrics.jsonl").read_bytes().endswith(b"\n")
        assert [row["step"] for row in rows] == list(range(8, rows[-1]["step"] + 1, 8))
        assert run.load()["steps"] >= 80
        assert (run.path / "checkpoints").joinpath("step_000000000080.safetensors").exists() == (
            run.checkpoints()[-1].read_bytes() == good
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
        # With space again the run goes on as if nothing had happened.
        run, learner = Run.open(run.path), LeastSquares(7)
        total = run.resume(learner) + 800
        run.train(learner, total, **QUIET)
        straight = make(tmp_path / "straight")
        straight.train(LeastSquares(7), total, **QUIET)
        assert_same_run(run.path, straight.path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_full_for_the_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    run, learner = make(tmp_path / "r"), LeastSquares(7)
    run.train(learner, 80, **QUIET)
    (run.path / "checkpoints" / "step_000000000160.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(RunError, match="the disk is full; earlier checkpoints are untouched"):
        run.train(learner, 800, checkpoint_every=160, **QUIET)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == [
        "step_000000000080.safetensors"
    ]
    assert run.load()["steps"] == 80
