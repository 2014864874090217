"""Measure the structure of the code base at one or more git revisions.

    python tools/house.py 748bca4 HEAD

Prints a Markdown table: lines of code, lines of dvc.yaml, import arrows between modules and between rooms, `noqa`
comments, and how often the words of CONTRIBUTING.md's list of unclear words occur.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections import Counter
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
UNCLEAR_VERBS = re.compile(r"\b(tell|tells|told|telling)\b", re.IGNORECASE)
UNCLEAR_NAMES = {"found", "asked", "told", "given", "said", "one", "own", "rest"}
PROSE = (".py", ".md", ".yaml", ".toml", ".j2", ".html")


def files_at(revision: str) -> dict[str, str]:
    """Return the text files of a revision, path -> content, without data, images and lock files."""
    listing = _git("ls-tree", "-r", "--name-only", revision).splitlines()
    names = [name for name in listing if name.endswith(PROSE) or name == "Makefile"]
    return {name: _git("show", f"{revision}:{name}") for name in names}


def measurements(files: dict[str, str]) -> dict[str, int]:
    """Count everything the table shows."""
    python = {name: text for name, text in files.items() if name.endswith(".py")}
    arrows = import_arrows({name: text for name, text in python.items() if name.startswith("src/")})
    inside = [(a, b) for a, b in arrows if a != "pinspect"]  # the package's own names are its door, not a room
    rooms = {(room(a), room(b)) for a, b in inside if room(a) != room(b)}
    counts = {f"lines of {folder}": _lines(python, f"{folder}/") for folder in ("src", "stages", "flows", "tests")}
    return counts | {
        "Python files over 450 lines": sum(text.count("\n") > 450 for text in python.values()),
        "lines of dvc.yaml": files.get("dvc.yaml", "").count("\n"),
        "import arrows between modules": len(arrows),
        "import arrows between rooms": len(rooms),
        "most rooms beside core that one room imports, cli left out": max(
            Counter(a for a, b in rooms if b != "core" and a != "cli").values()
        ),
        "`noqa` comments": sum(len(re.findall(r"# noqa", text)) for text in python.values()),
        "unclear verbs of CONTRIBUTING.md": sum(len(UNCLEAR_VERBS.findall(text)) for text in files.values()),
        "uses of unclear names of variables": sum(map(unclear_names, python.values())),
    }


def import_arrows(modules: dict[str, str]) -> set[tuple[str, str]]:
    """Return every (importing module, imported module) inside the package, lazy imports included."""
    names = {_module(path): text for path, text in modules.items()}
    arrows = set()
    for importer, text in names.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in names else node.module for target in targets]
            else:
                continue
            arrows |= {(importer, target) for target in targets if target in names and target != importer}
    return arrows


def room(module: str) -> str:
    """Return the room of a dotted module name: the first folder below the package, else `core`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or module == "pinspect.cli" else "core"


def unclear_names(text: str) -> int:
    """Count uses of names (variables, arguments, attributes excluded) that say nothing about their values."""
    tree = ast.parse(text)
    used = sum(isinstance(node, ast.Name) and node.id in UNCLEAR_NAMES for node in ast.walk(tree))
    return used + sum(isinstance(node, ast.arg) and node.arg in UNCLEAR_NAMES for node in ast.walk(tree))


def _module(path: str) -> str:
    parts = PurePosixPath(path).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _lines(files: dict[str, str], prefix: str) -> int:
    return sum(text.count("\n") for name, text in files.items() if name.startswith(prefix))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def main() -> None:
    """Print the table of the revisions named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", default=["HEAD"])
    revisions = parser.parse_args().revisions
    columns = [measurements(files_at(revision)) for revision in revisions]
    print(f"| measure | {' | '.join(revisions)} |\n| --- |{' --- |' * len(revisions)}")
    for measure in columns[0]:
        print(f"| {measure} | {' | '.join(str(column[measure]) for column in columns)} |")


if __name__ == "__main__":
    main()
