"""What starts at once: the package, its help, and the help of every command."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tether
from tether import cli

HEAVY = ("jax", "torch", "mujoco", "gymnasium", "numpy", "matplotlib", "pydantic", "tyro", "rich")


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_import_and_help_load_nothing_heavy() -> None:
    done = run(f"""
        import sys
        import tether, tether.cli
        assert tether.__version__ and "train" in dir(tether)
        code = tether.cli.main(["--help"])
        tether.cli.main(["--version"])
        loaded = [name for name in {HEAVY} if name in sys.modules]
        assert not loaded, loaded
        sys.exit(code)
    """)
    assert done.returncode == 0, done.stderr
    for name, command in cli.COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert command.summary in done.stdout
    assert done.stdout.splitlines()[-1] == f"tether {tether.__version__}"


def test_evaluating_needs_no_torch_and_no_jax_until_asked() -> None:
    done = run("""
        import sys
        import tether
        tether.load, tether.evaluate_run, tether.train
        assert "jax" not in sys.modules
        assert "torch" not in sys.modules
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in ("train", "study", "prefer"):
        assert cli.main([name, "--help"]) == 0
        told = capsys.readouterr()
        text = told.out + told.err
    else:
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
    assert f"usage: tether {name}" in text


def test_the_help_of_evaluate_is_that_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert "A language model has others: tether evaluate RUN --help" in text
    assert "--episodes" in text and "--fluency" not in text
    from tether.learning import Run

    run = tmp_path / "run"
    Run.create(run, method="sft", config={}, spec={}, engine="language").close()
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(run), "--help"])
    text = capsys.readouterr().out
    assert "--fluency" in text and "A language model has others" not in text


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tether' has no attribute 'trian'"):
        _ = tether.trian
    assert set(tether.__all__) <= set(dir(tether))


def test_a_missing_package_is_told_with_the_command_that_brings_it() -> None:
    for missing, arguments in (
        ("gymnasium", ["evaluate", "somewhere"]),
        ("jax", ["train", "ppo", "--env", "CartPole-v1"]),
    ):
        done = run(f"""
            import sys
            sys.modules["{missing}"] = None
            from tether.cli import main
            sys.exit(main({arguments}))
        """)
        assert done.returncode == 2, done.stderr
        assert done.stderr == (
            f"tether: `tether {arguments[0]}` needs {missing}, which is not installed; "
            "run: pip install 'tether-rl[control]'\n"
        )
