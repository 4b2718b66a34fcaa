"""Files for people appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards.whole_file import write_whole
from detectors.errors import InvalidInput


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "map.png").mkdir()
    with pytest.raises(InvalidInput, match="The map cannot be written to"):
        write_whole(tmp_path / "map.png", b"dots", what="The map")
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]
