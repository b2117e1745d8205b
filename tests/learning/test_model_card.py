"""Cards: metadata that YAML's own reader reads, and tables of settings and measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.learning.reports.model_card import last_metrics, settings_table, to_yaml, write_card
from tether.learning.run import Run

SCALARS = (
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(-9, 9) | st.text(max_size=8)
)
NAMES = st.from_regex(r"[a-z_][a-z_-]{0,5}x", fullmatch=True)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=9
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4))
def test_yaml_reads_back_what_was_written(value: dict[str, Any]) -> None:
    assert yaml.safe_load(to_yaml(value)) == value


def test_a_card_has_its_metadata_first(tmp_path: Path) -> None:
    write_card(tmp_path, {"tags": ["a", "b"], "base_model": None}, ["# Title", "", "Text.\n"])
    text = (tmp_path / "README.md").read_text()
    _, header, body = text.split("---\n")
    assert yaml.safe_load(header) == {"tags": ["a", "b"]}
    assert body == "\n# Title\n\nText.\n"


def test_a_table_shows_no_folders_of_this_machine_and_no_broken_cells() -> None:
    table = settings_table(
        {"data": "/home/somebody/secret/pairs.jsonl", "text": "a|b\nc", "rate": 0.1, "none": None}
    )
    assert "somebody" not in table
    assert "| data | pairs.jsonl |" in table
    assert "| text | a\\|b c |" in table
    assert table.splitlines()[-2:] == ["| rate | 0.1 |", "| none | null |"]


def test_what_the_checkpoint_has_not_learned_is_not_its_measurement(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", method="ppo", config={}, spec={})
    rows = [{"step": 10, "loss": 1.0, "time/seconds": 3}, {"step": 20, "loss": 0.5}]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.path / "checkpoints" / "step_000000000010.safetensors").touch()
    assert last_metrics(run) == {"step": 10, "loss": 1.0}
    run.close()
