"""Trials are done once, side by side or in turn, and a study goes on where it stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tether.errors import Interrupted, UserError
from tether.studies.trials import Trial, run_trials


def square(settings, place):
    with (place / "calls").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return {"value": settings["x"] ** 2}


def fail(settings, place):
    raise UserError(f"x is {settings['x']}; expected something else")


def die(settings, place):
    os._exit(9)


def linger(settings, place):
    (place / "pid").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def save_late(settings, place):
    """As a training does: answers SIGTERM after the iteration under way, with a checkpoint."""
    checkpoint = place / "checkpoint"
    if checkpoint.exists():
        return {"went on": True}
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    (place / "pid").write_text(str(os.getpid()))
    until(told.is_set)
    time.sleep(3)
    checkpoint.touch()
    raise Interrupted("saved")


def rest(settings, place):
    time.sleep(settings["seconds"])
    return {}


def count_threads(settings, place):
    return {"threads": os.environ.get("OMP_NUM_THREADS")}


def squares(count):
    return [Trial(f"square-{x}", square, {"x": x}) for x in range(count)]


def calls(folder, name):
    return (folder / name / "calls").read_text().split()


def test_results_come_by_name_in_the_order_given(tmp_path):
    found = run_trials(squares(3), tmp_path, progress=False)
    assert found == {f"square-{x}": {"value": x * x} for x in range(3)}
    assert list(found) == ["square-0", "square-1", "square-2"]


def test_side_by_side_gives_what_one_by_one_does(tmp_path):
    one = run_trials(squares(4), tmp_path / "one", progress=False)
    two = run_trials(squares(4), tmp_path / "two", workers=2, progress=False)
    assert one == two
    workers = {pid for x in range(4) for pid in calls(tmp_path / "two", f"square-{x}")}
    assert str(os.getpid()) not in workers


def test_workers_have_one_thread_each(tmp_path):
    trials = [Trial(name, count_threads, {}) for name in ("a", "b")]
    found = run_trials(trials, tmp_path, workers=2, progress=False)
    assert {result["threads"] for result in found.values()} == {"1"}


def test_what_is_done_is_not_done_again(tmp_path):
    run_trials(squares(2), tmp_path, progress=False)
    run_trials(squares(3), tmp_path, progress=False)
    assert [len(calls(tmp_path, f"square-{x}")) for x in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_after_an_error_the_rest_goes_on_from_there(tmp_path, workers):
    broken = [*squares(2), Trial("later", fail, {"x": 7})]
    with pytest.raises(UserError, match="x is 7"):
        run_trials(broken, tmp_path, workers=workers, progress=False)
    mended = [*squares(2), Trial("later", square, {"x": 7})]
    found = run_trials(mended, tmp_path, workers=workers, progress=False)
    assert found["later"] == {"value": 49}
    assert len(calls(tmp_path, "square-0")) == 1


def test_after_an_error_nothing_more_is_begun(tmp_path):
    trials = [Trial("slow", rest, {"seconds": 1.5}), Trial("bad", fail, {"x": 7}), *squares(4)]
    with pytest.raises(UserError, match="x is 7"):
        run_trials(trials, tmp_path, workers=2, progress=False)
    # What was under way was finished.
    assert (tmp_path / "slow" / "result.json").exists()
    assert [place.name for place in tmp_path.glob("square-*")] == []


def test_one_name_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="trial square-0 2 times"):
        run_trials([*squares(2), *squares(1)], tmp_path, workers=2, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_no_workers_are_refused(tmp_path):
    with pytest.raises(UserError, match="workers is 0; expected at least 1"):
        run_trials(squares(1), tmp_path, workers=0)
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_trials_has_no_results(tmp_path):
    assert run_trials([], tmp_path, workers=2) == {}


def test_progress_tells_the_time_of_each_trial(tmp_path, capsys):
    trials = [Trial(f"rest-{n}", rest, {"seconds": n}) for n in (2, 2, 0, 0)]
    trials = [replace(trial, name=f"{n}") for n, trial in enumerate(trials)]
    run_trials(trials, tmp_path, workers=2)
    told = dict(re.findall(r"\] (\d), (\d+) s", capsys.readouterr().err))
    assert told == {"0": "2", "1": "2", "2": "0", "3": "0"}


def test_a_half_written_result_does_not_count(tmp_path):
    run_trials(squares(1), tmp_path, progress=False)
    result = tmp_path / "square-0" / "result.json"
    result.rename(result.with_name("result.json.tmp"))
    assert run_trials(squares(1), tmp_path, progress=False)["square-0"] == {"value": 0}
    assert len(calls(tmp_path, "square-0")) == 2


def test_other_settings_are_refused_and_nothing_is_touched(tmp_path):
    run_trials([Trial("a", square, {"x": 1})], tmp_path, progress=False)
    before = (tmp_path / "a" / "result.json").read_bytes()
    with pytest.raises(UserError, match="other settings; choose another --out"):
        run_trials([Trial("a", square, {"x": 2})], tmp_path, progress=False)
    assert (tmp_path / "a" / "result.json").read_bytes() == before


def test_settings_that_were_refused_hold_no_folder(tmp_path):
    with pytest.raises(UserError, match="x is 1"):
        run_trials([Trial("a", fail, {"x": 1})], tmp_path, progress=False)
    assert not (tmp_path / "a").exists()
    run_trials([Trial("a", square, {"x": 2})], tmp_path, progress=False)


@pytest.mark.parametrize("damage", ["{", "[]"])
def test_a_damaged_result_is_named(tmp_path, damage):
    run_trials([Trial("a", square, {"x": 1})], tmp_path, progress=False)
    (tmp_path / "a" / "result.json").write_text(damage)
    with pytest.raises(UserError, match=r"cannot read .*result\.json.*remove it"):
        run_trials([Trial("a", square, {"x": 1})], tmp_path, progress=False)


def test_a_killed_process_is_told_in_one_line(tmp_path):
    trials = [Trial("a", die, {}), Trial("b", die, {})]
    with pytest.raises(UserError, match="process of the study was killed") as error:
        run_trials(trials, tmp_path, workers=2, progress=False)
    assert "\n" not in str(error.value)


def test_progress_names_what_is_done(tmp_path, capsys):
    run_trials(squares(2), tmp_path)
    told = capsys.readouterr()
    assert told.out == ""
    # The first line comes before anything is done, however long that takes.
    assert told.err.splitlines()[0].startswith("2 trials to do, beginning with square-0;")
    assert "[2/2] square-1" in told.err


def test_settings_lie_beside_the_result(tmp_path):
    run_trials([Trial("a", square, {"x": 3})], tmp_path, progress=False)
    assert json.loads(Path(tmp_path / "a" / "settings.json").read_text()) == {"x": 3}


def test_a_killed_study_leaves_no_workers(tmp_path):
    """Not even after SIGKILL, which the study's own process cannot answer."""
    pids = killed_study("linger", tmp_path)
    until(lambda: not any(alive(pid) for pid in pids))


def test_a_killed_study_begun_anew_waits_for_what_is_still_being_saved(tmp_path, capsys):
    pids = killed_study("save_late", tmp_path)
    found = run_trials([Trial(n, save_late, {}) for n in "ab"], tmp_path)
    assert found == {n: {"went on": True} for n in "ab"}
    assert f"{tmp_path / 'a'} is in use by another process" in capsys.readouterr().err
    until(lambda: not any(alive(pid) for pid in pids), seconds=5)


def killed_study(function, folder):
    """Begins trials a and b, kills their study, and says which processes were at work."""
    program = (
        "from pathlib import Path; from test_trials import *\n"
        "if __name__ == '__main__': run_trials("
        f"[Trial(n, {function}, {{}}) for n in 'ab'], Path({str(folder)!r}), workers=2)"
    )
    (folder / "study.py").write_text(program)
    study = subprocess.Popen(
        [sys.executable, str(folder / "study.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    places = [folder / name / "pid" for name in "ab"]
    until(lambda: all(place.exists() and place.read_text() for place in places))
    study.send_signal(signal.SIGKILL)
    study.wait()
    return [int(place.read_text()) for place in places]


def until(condition, seconds=30):
    for _ in range(10 * seconds):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"not so within {seconds} s")


def alive(pid):
    try:
        # A process that has ended may still wait to be collected.
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False
