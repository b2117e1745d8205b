"""JAX reads its settings once: tether's own must be in place before any test starts it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The tests compile some two thousand programs and run most of them for a moment; JAX's own tests
# are run like this. Give 0 to test what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older emitters compile the same programs in a third of the time; a flag given later counts.
os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"

from tether.control import configure_jax

# Many tests, and the commands that they start, compile the same programs.
COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

configure_jax()


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compiles as for users: for what holds to the last bit, and for images."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line if the labelling page was not tested in a browser."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)}
    for reason in sorted(reason for reason in reasons if "Chromium" in reason):
        terminalreporter.write_line(f"the labelling page was not tested in a browser: {reason}")
