"""`tether export`: its words, its mistakes in one line, and nothing left half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tether
from tether import cli
from tether.errors import UserError
from tether.exporting import Exported
from tether.language.runs import training
from tether.learning.run import Run

CONTROL = Path(__file__).parent / "control"
sys.path.insert(0, str(CONTROL))

from short_runs import TINY  # noqa: E402

# It writes what an export writes, then waits to be stopped.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import tether.language.export.hf as hf
write = hf.write_model_card
def slow(*arguments, **more):
    write(*arguments, **more)
    print("written", flush=True)
    time.sleep(60)
hf.write_model_card = slow
from tether.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A policy, a language model, a run that has learned nothing, and one of another kind."""
    root = tmp_path_factory.mktemp("runs")
    made = {name: root / name for name in ("policy", "language", "new", "pretraining")}
    tether.train("ppo", "CartPole-v1", total_steps=128, out=made["policy"], **TINY)
    rows = [{"prompt": f"Film {i} is", "completion": " good"} for i in range(4)]
    training.train(
        *("sft",),
        model="tiny",
        data=rows,
        total_steps=4,
        out=made["language"],
        batch_size=4,
        progress=False,
        sinks=(),
    )
    spec = json.loads((made["policy"] / "run.json").read_text())["spec"]
    Run.create(made["new"], engine="control", method="ppo", config={}, spec=spec).close()
    Run.create(made["pretraining"], method="pretraining", config={}, spec={"seed": 0}).close()
    return made


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command, which must fail with one line; returns the line."""
    assert cli.main(["export", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("tether: ")]
    assert len(lines) == 1, err
    return lines[0]


def test_every_mistake_is_one_line_and_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    policy, language = runs["policy"], runs["language"]
    for arguments, said in (
        ((tmp_path / "nothing", "--to", "hf", "--out", out), "there is no run folder"),
        ((tmp_path, "--to", "hf", "--out", out), "is not a run of tether"),
        ((language, "--to", "onnx", "--out", out), "holds a language model; expected hf or gguf"),
        ((policy, "--to", "gguf", "--out", out), "holds a policy for an environment; expected hf"),
        ((policy, "--to", "pdf", "--out", out), "hf"),
        ((runs["new"], "--to", "onnx", "--out", out), "has no checkpoint yet, so there is nothing"),
        ((runs["pretraining"], "--to", "hf", "--out", out), "was trained by pretraining"),
        ((policy, "--to", "onnx"), "--out is required"),
        ((policy, "--out", out), "--to is required"),
        ((policy, "--to", "onnx", "--out", out.with_suffix(".onnx")), "looks like a file"),
        ((policy, "--to", "onnx", "--out", out, "--keep-adapter"), "keep_adapter is True"),
        ((policy, "--to", "hf", "--out", out, "--dtype", "float16"), "dtype is 'float16'"),
        ((language, "--to", "hf", "--out", out, "--episodes", "3"), "episodes is 3"),
        ((language, "--to", "hf", "--out", out, "--env", "CartPole-v1"), "env is 'CartPole-v1'"),
        ((policy, "--to", "hf", "--out", out, "--episodes", "-1"), "episodes"),
        ((policy, "--to", "hf", "--out", out, "--env", "CartPoles-v1"), "CartPole"),
    ):
        assert said in refused(capsys, *arguments), arguments
        assert list(tmp_path.iterdir()) == []
    out.mkdir()
    (out / "mine").write_text("dear")
    assert "is not empty (it has mine)" in refused(capsys, policy, "--to", "hf", "--out", out)
    assert "is a file" in refused(capsys, policy, "--to", "hf", "--out", out / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_python_says_the_same(runs: dict[str, Path], tmp_path: Path) -> None:
    wrong: Any = "pdf"
    with pytest.raises(UserError, match=r"to is 'pdf'.*expected hf or onnx"):
        tether.export(runs["policy"], to=wrong, out=tmp_path / "out")
    with pytest.raises(UserError, match="unknown key 'keep_adaptor'; did you mean 'keep_adapter'"):
        tether.export(runs["language"], to="hf", out=tmp_path / "out", keep_adaptor=True)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(runs["policy"]), "--to", "onnx", "--out", str(out), "--json"]
    assert cli.main(arguments) == 0
    said, err = capsys.readouterr()
    found = json.loads(said)
    assert found["files"] == ["README.md", "policy.onnx"]
    assert (found["run"], found["to"], found["out"]) == (str(runs["policy"]), "onnx", str(out))
    assert f"parameters is {found['largest_difference']:.2g}" in err
    assert f"written: {out} (README.md, policy.onnx)" in err
    exported = tether.export(runs["policy"], to="onnx", out=tmp_path / "python")
    assert isinstance(exported, Exported)
    assert exported.summary() == {**found, "out": str(tmp_path / "python")}
    # The same run gives the same bytes.
    assert (out / "policy.onnx").read_bytes() == (tmp_path / "python/policy.onnx").read_bytes()


def test_stopped_in_the_middle_it_leaves_nothing(runs: dict[str, Path], tmp_path: Path) -> None:
    child = subprocess.Popen(
        [
            *(sys.executable, "-c", SLOW, "export", str(runs["language"])),
            *("--to", "hf", "--out", str(tmp_path / "out")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        (unfinished,) = tmp_path.iterdir()
        assert (unfinished / "model.safetensors").exists()
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert time.monotonic() - began < 20
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130
    assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_it_says_what_to_install(
    runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "tether.control.export.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = refused(capsys, runs["policy"], "--to", "onnx", "--out", tmp_path / "out")
    assert "pip install 'tether-rl[export]'" in said
    assert list(tmp_path.iterdir()) == []
