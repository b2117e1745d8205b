"""One process at a time works in a folder, whatever machine it is on and however it ended."""

import json
import subprocess
import sys
import threading
import time

import pytest
from test_trials import square

from tether.studies import claims, trials
from tether.studies.claims import Watch, take
from tether.studies.trials import Trial, run_trials


def numbers(folder):
    return sorted(int(path.name.removeprefix("claim-")) for path in folder.glob("claim-*"))


def elsewhere(folder, number=1, count=0, **more):
    """A claim from another machine, whose processes cannot be seen from here."""
    owner = {"id": "x", "machine": "another", "host": "node7", "pid": 1, "started": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"claim-{number}").write_text(json.dumps({**owner, "count": count, **more}))


def test_of_many_at_once_one_wins(tmp_path):
    for round_ in range(20):
        folder = tmp_path / str(round_)
        folder.mkdir()
        ready, won = threading.Barrier(8), []

        def compete(folder=folder, ready=ready, won=won):
            ready.wait()
            if take(folder) is not None:
                won.append(1)

        threads = [threading.Thread(target=compete) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [1]
        assert [path.name for path in folder.iterdir()] == ["claim-1"]


def test_a_released_folder_is_the_next_ones(tmp_path):
    with take(tmp_path) as claim:
        assert claim is not None
        assert take(tmp_path) is None
        assert not Watch().is_free(tmp_path)
    assert Watch().is_free(tmp_path)
    for _ in range(3):
        with take(tmp_path):
            pass
    # A number is never given twice, and old claims do not pile up.
    assert numbers(tmp_path) == [3, 4]


def test_whoever_looked_long_ago_wins_nothing(tmp_path, monkeypatch):
    """It saw claim 1; since then others had 2 and 3, and 2 is gone."""
    elsewhere(tmp_path, 1, released=True)
    real = claims._newest
    looks = []

    def late(folder):
        found = real(folder)
        if not looks:
            looks.append(1)
            (tmp_path / "claim-1").unlink()
            elsewhere(tmp_path, 3)
        return found

    monkeypatch.setattr(claims, "_newest", late)
    assert take(tmp_path, 1) is None
    assert numbers(tmp_path) == [3]


def test_a_process_of_this_machine_that_died_holds_nothing(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from tether.studies.claims import take\n"
        "claim = take(Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == 9
    assert Watch().is_free(tmp_path)
    assert take(tmp_path) is not None
    assert numbers(tmp_path) == [1, 2]


def test_a_claim_of_another_machine_is_abandoned_when_it_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "ABANDONED", 0.3)
    elsewhere(tmp_path)
    watch = Watch()
    for count in range(4):
        elsewhere(tmp_path, count=count)
        assert watch.abandoned(tmp_path) == 0
        time.sleep(0.15)
    assert take(tmp_path, watch.abandoned(tmp_path)) is None
    time.sleep(0.4)
    # Somebody who has just come knows nothing yet.
    assert Watch().abandoned(tmp_path) == 0
    assert watch.abandoned(tmp_path) == 1
    assert take(tmp_path, 1) is not None


def test_a_holder_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.02)
    with take(tmp_path):
        seen = set()
        for _ in range(200):
            seen.add((tmp_path / "claim-1").read_bytes())
            time.sleep(0.01)
            if len(seen) > 2:
                break
    assert len(seen) > 2
    assert [path.name for path in tmp_path.iterdir()] == ["claim-1"]


def test_a_holder_that_was_replaced_ends_without_another_word_to_the_folder(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from tether.studies import claims\n"
        "claims.HEARTBEAT = 0.05; folder = Path(sys.argv[1])\n"
        "with claims.take(folder):\n"
        "    print('held', flush=True); time.sleep(30); (folder / 'result.json').touch()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    elsewhere(tmp_path, 2)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"{tmp_path} was taken over by another process" in told
    assert not (tmp_path / "result.json").exists()


class TestStudies:
    def test_trials_that_others_hold_are_left_to_them(self, tmp_path, capsys):
        """The others are done meanwhile, and the result is waited for."""
        elsewhere(tmp_path / "square-0")
        settings = tmp_path / "square-0" / "settings.json"
        settings.write_text('{"x": 0}')

        def finish():
            while not (tmp_path / "square-2" / "result.json").exists():
                time.sleep(0.02)
            (tmp_path / "square-0" / "result.json").write_text('{"value": "theirs"}')

        thread = threading.Thread(target=finish)
        thread.start()
        mine = [Trial(f"square-{x}", square, {"x": x}) for x in range(3)]
        found = run_trials(mine, tmp_path)
        thread.join()
        assert list(found.values()) == [{"value": "theirs"}, {"value": 1}, {"value": 4}]
        told = capsys.readouterr().err
        assert "square-0 is in use by another process (process 1 on node7)" in told
        assert "square-0, by another process" in told

    def test_an_abandoned_trial_is_taken_over(self, tmp_path, monkeypatch):
        monkeypatch.setattr(claims, "ABANDONED", 0.3)
        monkeypatch.setattr(trials, "POLL", 0.1)
        elsewhere(tmp_path / "square-3")
        found = run_trials([Trial("square-3", square, {"x": 3})], tmp_path, progress=False)
        assert found == {"square-3": {"value": 9}}

    def test_many_processes_do_each_trial_once(self, tmp_path):
        """As the tasks of an array job do, all with the same command."""
        program = (
            "import sys; from pathlib import Path; from test_trials import squares\n"
            "from tether.studies.trials import run_trials\n"
            "if __name__ == '__main__':\n"
            "    print(run_trials(squares(12), Path(sys.argv[1]), progress=False))"
        )
        commands = [
            subprocess.Popen(
                [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        told = {process.communicate(timeout=120)[0] for process in commands}
        assert told == {f"{ ({f'square-{x}': {'value': x * x} for x in range(12)}) }\n"}
        for x in range(12):
            assert len((tmp_path / f"square-{x}" / "calls").read_text().split()) == 1


@pytest.fixture(autouse=True)
def import_these_tests(monkeypatch, request):
    """Processes that are started here import test modules as this one does."""
    monkeypatch.setenv("PYTHONPATH", ":".join([str(request.path.parent), *sys.path]))
