"""The code that a project's results belong to, where the project has no copy of the code: `code.yaml`.

In the repository a stage depends on folders of `src/pinspect`. A project that `pinspect new` made runs the installed
package, which lies outside of the project. There a stage depends on entries of `code.yaml`: each has the sha256 of a
room of the package. `pinspect update` renews the entries after an installation of another version.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pinspect.core.digests import code_digests
from pinspect.core.errors import StageInputError
from pinspect.core.yaml_file import read_yaml

CODE_FILE = "code.yaml"
PACKAGE = Path(__file__).parents[1]


def room_digest(room: str) -> str:
    """Return the sha256 over names and contents of the files of a room of the running package.

    Args:
        room: A room such as `core`, or a single module such as `model/families`.
    """
    files = code_digests(PACKAGE, f"{room}.py", f"{room}/**/*")
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def changed_rooms(root: Path) -> list[str]:
    """Return the rooms whose code differs from the project's `code.yaml`; none if the project has no such file.

    Args:
        root: The project's folder.

    Raises:
        ParamsError: The file cannot be read.
    """
    path = root / CODE_FILE
    recorded = read_yaml(path) if path.is_file() else {}
    return [room for room, digest in recorded.items() if room_digest(room) != digest]


def require_code(root: Path) -> None:
    """Check that the running package is the code that the project's `code.yaml` names.

    Args:
        root: The project's folder.

    Raises:
        StageInputError: The code differs.
    """
    if rooms := changed_rooms(root):
        raise StageInputError(
            f"{root / CODE_FILE}: the installed pinspect has other code in {', '.join(rooms)}; run pinspect update, "
            "which keeps captures, parameters and settings"
        )
