"""What seam.py counts."""

from pathlib import Path

import seam

TEXT = '''"""The recent keys."""

from rules import RecentRule  # recent

FIELDS = {"recent": 1, "recent keys": 2}


def width(rule: RecentRule) -> int:
    """Of a recent rule."""
    # recent
    return rule.width
'''


def test_code_that_names_a_rule_is_counted_and_prose_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "server" / "saccade_server" / "engine"
    folder.mkdir(parents=True)
    (folder / "core.py").write_text(TEXT)
    (folder / "pages.py").write_text("recently = 1\n")
    assert seam.breadth(tmp_path)["recent keys (LocoRE)"] == {
        "files": 1,
        "lines": 3,
        "engine_files": 1,
        "core_files": 1,
        "by_file": {"server/saccade_server/engine/core.py": 3},
    }
    assert seam.size(folder) == {"files": 2, "lines": 12, "code_lines": 5}


def test_every_kind_of_rule_is_found_in_this_tree() -> None:
    found = seam.shape(Path(seam.HERE).parent)
    assert all(2 <= counts["files"] <= 40 for counts in found["rules"].values())
    assert all(counts["modules"] > 5 for counts in found["imports"].values())
    assert found["size"][seam.ENGINE]["code_lines"] > 1000
