"""Measurements reach their file, TensorBoard and the terminal, cheaply."""

import io
import json
import math
import os
import pty
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from least_squares_learner import LeastSquares

from tether.errors import RunError, UserError
from tether.learning import Run, read_metrics
from tether.learning.output.metrics import MetricsFile, format_line
from tether.learning.output.progress import NoProgress, ProgressBar, ProgressLines, open_progress
from tether.learning.output.sinks import TensorBoard

METRICS = {f"group/name_{i}": i * 0.1 for i in range(25)}


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_line_has_step_first_then_names_in_order() -> None:
    line = format_line(7, {"b/x": 1, "a/y": np.float32(0.5), "a/n": np.int64(3), "a/b": np.True_})
    assert line == b'{"step": 7, "a/b": 1, "a/n": 3, "a/y": 0.5, "b/x": 1}\n'


def test_nan_and_infinity_are_valid_json_and_read_as_nan(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(1, {"a": math.nan, "b": math.inf, "c": np.float32("-inf"), "d": 1e308})
    file.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "a": None, "b": None, "c": None, "d": 1e308}
    (read,) = read_metrics(tmp_path)
    assert math.isnan(read["a"])
    assert math.isnan(read["c"])
    assert read["d"] == 1e308


def test_floats_come_back_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    file = MetricsFile(tmp_path / "m")
    file.write(1, {str(i): v for i, v in enumerate(values)})
    file.close()
    (row,) = read_metrics(tmp_path / "m")
    assert all(row[str(i)] == v for i, v in enumerate(values))


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert read_metrics(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["no json", "[1]", "{" * 9])
def test_lines_that_are_no_objects_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "m").write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(UserError, match="m, line 2: not a JSON object"):
        read_metrics(tmp_path / "m")
    with pytest.raises(UserError, match="cannot read metrics"):
        read_metrics(tmp_path / "none")


def test_the_name_step_is_taken() -> None:
    with pytest.raises(UserError, match="a metric is named 'step'"):
        format_line(1, {"step": 3})


def test_a_full_disk_is_told_in_one_line() -> None:
    file = MetricsFile(Path("/dev/full"))
    with pytest.raises(RunError, match="cannot write /dev/full: the disk is full"):
        file.write(1, {"a": 1.0})
    file.close()


def test_a_full_disk_is_told_by_tensorboard_too(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tb", step=0)
    descriptor = sink._writer._py_recordio_writer._writer.fileno()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    with pytest.raises(RunError, match="the disk is full"):
        for step in range(1000):
            sink.write(step, METRICS)
    with pytest.raises(RunError, match="the disk is full"):
        sink.close()
    os.close(full)


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoard(tmp_path / "tb", step=0)
    for step in (10, 20):
        sink.write(step, {"loss/value": step / 3, "return/mean": math.nan, "n": np.int64(step)})
    sink.flush()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss/value", "n", "return/mean"]
    assert [e.step for e in events.Scalars("loss/value")] == [10, 20]
    assert [e.value for e in events.Scalars("n")] == [10.0, 20.0]
    sink.close()


def test_writing_an_iteration_costs_less_than_half_a_millisecond(tmp_path: Path) -> None:
    file, sink = MetricsFile(tmp_path / "m"), TensorBoard(tmp_path / "tb", step=0)
    costs = []
    for step in range(400):
        began = time.thread_time()
        file.write(step, METRICS)
        sink.write(step, METRICS)
        costs.append(time.thread_time() - began)
    file.close()
    sink.close()
    assert np.median(costs) < 0.5e-3


def test_learning_loads_neither_engine(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from least_squares_learner import LeastSquares
from tether.learning import Run
heavy = {{"jax", "torch", "gymnasium", "mujoco", "tensorboardX", "rich", "wandb", "trackio"}}
loaded = lambda: sorted(heavy & {{name.split(".")[0] for name in sys.modules}})
before = loaded()
run = Run.create({str(tmp_path / "r")!r}, method="m", config={{}}, spec={{}})
run.train(LeastSquares(7), 80, progress=False, sinks=("tensorboard",))
print(before, loaded())
"""
    assert run_python(code) == "[] ['tensorboardX']"


def test_torch_can_still_be_imported_after_tensorboard_was(tmp_path: Path) -> None:
    code = f"""
import sys, importlib.util
from pathlib import Path
from tether.learning.output.sinks import TensorBoard
TensorBoard(Path({str(tmp_path / "tb")!r}), step=0).close()
print("torch" in sys.modules, "tensorboardX.event_file_writer" in sys.modules)
"""
    assert run_python(code) == "False True"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_sink_whose_package_is_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    run = Run.create(tmp_path / "r", method="m", config={}, spec={})
    with pytest.raises(UserError, match=rf"needs the package {name}; .*'tether-rl\[track\]'"):
        run.train(LeastSquares(7), 80, progress=False, sinks=("tensorboard", name))
    run.train(LeastSquares(7), 80, progress=False, sinks=())


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_off_a_terminal_progress_is_plain_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("tether.learning.output.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    progress = open_progress(100_000, 0, metric="return/mean", stream=stream)
    assert isinstance(progress, ProgressLines)
    # The first iteration compiles for an hour, which the time left must not be reckoned by.
    now += 3600.0
    for step in range(1, 31):
        now += 1.0
        progress.update(step * 1000, {"return/mean": step / 3} if step % 2 else {})
    assert lines(stream) == [
        "step 1,000/100,000 (1%)  ETA -:--:--  return/mean 0.333333",
        "step 11,000/100,000 (11%)  1,000 steps/s  ETA 0:01:29  return/mean 3.66667",
        "step 21,000/100,000 (21%)  1,000 steps/s  ETA 0:01:19  return/mean 7",
    ]
    progress.close()
    assert lines(stream)[-1].startswith("step 30,000/100,000 (30%)")
    assert lines(stream)[-1].endswith("return/mean 9.66667")
    progress.close()
    assert len(lines(stream)) == 4
    assert "\x1b" not in stream.getvalue()


def test_what_is_computed_before_the_first_update_is_shown() -> None:
    stream = io.StringIO()
    progress = open_progress(100, 0, metric="loss", stream=stream)
    progress.update(0, {"reference/done": 0.25})
    progress.close()
    assert lines(stream) == [
        "step 0/100 (0%)  ETA -:--:--  preparing: 25% of the reference's log-probabilities"
    ]


def test_the_rate_counts_only_this_stretch_and_follows_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("tether.learning.output.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    progress = open_progress(10**6, 500_000, metric="x", stream=stream)
    for i in range(3000):
        now += 0.01
        progress.update(500_000 + 10 * i, {})
    assert "  1,000 steps/s" in lines(stream)[-1]
    for i in range(3000):
        now += 0.01
        progress.update(530_000 + 20 * i, {})
    assert "  2,000 steps/s" in lines(stream)[-1]
    assert not lines(stream)[-1].endswith(" ")


def test_training_writes_progress_to_stderr_unless_told_not_to(tmp_path: Path, capsys) -> None:
    run = Run.create(tmp_path / "r", method="m", config={}, spec={})
    learner = LeastSquares(7)
    run.train(learner, 80, sinks=(), progress_metric="loss/value")
    output = capsys.readouterr()
    assert output.out == ""
    assert "step 80/80 (100%)" in output.err
    assert "loss/value" in output.err
    run.train(learner, 160, sinks=(), progress=False)
    assert capsys.readouterr() == ("", "")
    assert isinstance(open_progress(1, 0, metric="x", show=False), NoProgress)


def test_on_a_terminal_progress_is_a_bar_redrawn_at_most_four_times_a_second() -> None:
    reader, writer = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        # Reading a terminal whose other end is closed is an error on Linux.
        with suppress(OSError):
            while block := os.read(reader, 1 << 16):
                shown.append(block)

    thread = threading.Thread(target=read)
    thread.start()
    with os.fdopen(writer, "w") as stream:
        progress = open_progress(1000, 0, metric="[b]odd/name", stream=stream)
        assert isinstance(progress, ProgressBar)
        began, step = time.monotonic(), 0
        while time.monotonic() - began < 0.9:
            step += 1
            progress.update(step, {"[b]odd/name": 12.5})
        progress.update(1000, {})
        progress.close()
    thread.join()
    os.close(reader)
    text = b"".join(shown).decode()
    assert step > 100
    assert text.count("\x1b[2K") <= 8
    assert "1,000/1,000" in text
    assert "steps/s" in text
    assert "[b]odd/name 12.5" in text
