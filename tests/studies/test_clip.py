"""The study of the clip: the lecture's table against what PPO's objective says on paper."""

import json

import pytest

from tether.errors import UserError
from tether.studies import clip


def test_the_rows_are_the_lectures() -> None:
    """Two of six are clipped, and there the value no longer depends on the ratio."""
    rows = clip.rows(0.2)
    assert [row["clipped"] for row in rows] == [False, False, False, True, True, False]
    assert [row["value"] for row in rows] == pytest.approx([1, -1, 0.6, -0.8, 1.2, -1.4])


def test_wide_regions_keep_the_ratio_positive() -> None:
    assert all(row["ratio"] > 0 for row in clip.rows(0.7))
    assert sum(row["clipped"] for row in clip.rows(0.7)) == 2


def test_command_draws(tmp_path, capsys) -> None:
    clip.command(["--out", str(tmp_path / "clip"), "--epsilon", "0.3", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == json.loads((tmp_path / "clip" / "clip.json").read_text())
    assert (tmp_path / "clip" / "clip.png").stat().st_size > 10_000


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        clip.run(clip.ClipConfig(), tmp_path / "file" / "clip")
