"""A file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.folders import new_file


def test_a_file_that_fails_half_way_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    with new_file(path) as new:
        new.write_text("one")
    with pytest.raises(ValueError, match="half way"), new_file(path) as new:
        new.write_text("tw")
        assert path.read_text() == "one"
        raise ValueError("half way")
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["note.json"]
