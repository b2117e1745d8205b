"""The way of one setting, `--epsilon`, from the command line to the equation that uses it.

    python benchmarks/setting_path.py

Runs ``tether train ppo --env CartPole-v1 --epsilon 0.3141`` here with a profiler. Printed are
the functions of tether that are active when :func:`tether.objectives.clipped_surrogate` is first
called (the call stack), and every function that was called before and held the setting: had it, or
an object with it, among its arguments. Calls within a compiled function are those of its tracing.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FrameType

EPSILON = 0.3141
COMMAND = f"train ppo --env CartPole-v1 --total-steps 2048 --quiet --epsilon {EPSILON} --out"


def holds(value: object) -> bool:
    """Whether an argument is the setting, or directly holds it."""
    if isinstance(value, str):
        return value == str(EPSILON)
    if isinstance(value, float):
        return value == EPSILON
    if isinstance(value, Mapping):
        return any(holds(v) for v in value.values() if isinstance(v, str | float))
    if isinstance(value, list | tuple) and len(value) < 50:
        return any(holds(v) for v in value if isinstance(v, str | float))
    parts = getattr(type(value), "__pydantic_fields__", None)
    return parts is not None and getattr(value, "epsilon", None) == EPSILON


def main() -> None:
    import tether
    from tether import cli, objectives
    from tether.control import configure_jax

    configure_jax()
    package = str(Path(tether.__file__).parent)
    equation: CodeType = objectives.clipped_surrogate.__code__
    holders: list[CodeType] = []
    stack: list[CodeType] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(package):
            return
        if code is equation:
            outer: FrameType | None = frame
            while outer is not None:
                if outer.f_code.co_filename.startswith(package):
                    stack.append(outer.f_code)
                outer = outer.f_back
            sys.setprofile(None)
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if code.co_name.isidentifier() and any(holds(frame.f_locals.get(n)) for n in names):
            holders.append(code)

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(profile)
        try:
            cli.main([*COMMAND.split(), f"{folder}/run", "--sinks"])
        finally:
            sys.setprofile(None)
    for title, codes in (
        ("Active when the equation is called", stack[::-1]),
        ("Called with the setting before that", list(dict.fromkeys(holders))),
    ):
        files = {code.co_filename for code in codes}
        print(f"{title}: {len(codes)} functions in {len(files)} files")
        for code in codes:
            print(f"  {Path(code.co_filename).relative_to(package)}:{code.co_qualname}")
    print(f"calls with the setting, repetitions included: {len(holders)}")


if __name__ == "__main__":
    main()
