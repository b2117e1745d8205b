"""JAX reads its settings once: tether's own must be in place before any test starts it."""

from typing import Any

from tether.control import configure_jax

configure_jax()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line if the labelling page was not tested in a browser."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)}
    for reason in sorted(reason for reason in reasons if "Chromium" in reason):
        terminalreporter.write_line(f"the labelling page was not tested in a browser: {reason}")
