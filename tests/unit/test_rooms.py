"""Imports between rooms. import-linter checks their direction (`make lint`), this file their number."""

import ast
from collections import defaultdict
from pathlib import Path

import pinspect

PACKAGE = Path(pinspect.__file__).parent
MOST_NEIGHBORS = 4
MOST_LINES = 450


def neighbors() -> dict[str, set[str]]:
    """Return the rooms that each room imports, `core` excluded."""
    rooms = defaultdict(set)
    for path in PACKAGE.glob("*/**/*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pinspect."):
                rooms[room].add(node.module.split(".")[1])
    return {room: seen - {room, "core"} for room, seen in rooms.items()}


def test_no_room_but_the_command_line_sees_more_than_four_others():
    crowded = {room: seen for room, seen in neighbors().items() if room != "cli" and len(seen) > MOST_NEIGHBORS}
    assert crowded == {}


def test_nobody_imports_pretraining():
    assert [room for room, seen in neighbors().items() if "pretraining" in seen] == []


def test_no_file_is_too_long_to_read_at_once():
    files = list(PACKAGE.rglob("*.py"))
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
