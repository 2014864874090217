"""Record the images of the captures with DVC, in projects that keep them under DVC: `images.dvc` lies beside `images/`.

`pinspect new` makes such projects. There git has `labels.csv` and `images.dvc`, the hash of all images. DVC's cache has
the images, and so has its remote after `dvc push`. In other projects this module changes nothing.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import yaml

from pinspect.captures.change import locked
from pinspect.captures.labels import IMAGES, IMAGES_RECORD, name_key
from pinspect.captures.table import LABELS, read_table
from pinspect.core.errors import CaptureError

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_TRIES = 1.0
_CONFLICT = b"<<<<<<<"  # git's mark; DVC reports it


def record_images(folder: Path) -> None:
    """Bring DVC's cache and `images.dvc` up to date with `images/`; wait while another `dvc` uses the images.

    This also records images that a killed process, a correction or a person has added. DVC shows its progress in a
    terminal.

    Args:
        folder: The captures' folder; the caller has not locked it.

    Raises:
        CaptureError: Images of `labels.csv` are missing, or DVC refuses. Images and labels are unchanged.
    """
    folder = folder.resolve()
    if not (folder / IMAGES_RECORD).is_file() or not (folder / IMAGES).is_dir():
        return
    blocker = ""
    while True:
        # Without the lock between two tries: the dvc that uses the images may run the stage raw, which needs it, too.
        with locked(folder):
            _require_all_images(folder)
            before, blocker = blocker, _record(folder)
        if not blocker:
            return
        if not before:
            _log.warning("%s: waiting for %s; all captures are in place", folder / IMAGES_RECORD, blocker)
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _record(folder: Path) -> str:
    """Record the images once; return who uses them, in words, if it has to be done again."""
    record = folder / IMAGES_RECORD
    try:
        from dvc.exceptions import DvcException, NotDvcRepoError
        from dvc.lock import LockError
        from dvc.repo import Repo
        from dvc.repo.add import add
    except ModuleNotFoundError:
        _log.warning("%s: not updated, since DVC is not installed here; where it is, dvc repro updates it", record)
        return ""
    try:
        with Repo(str(folder)) as repo:
            with repo.lock:
                _repair(record)
            repo.scm_context.quiet = True  # no advice on git add before each dvc repro
            add(repo, str(folder / IMAGES), relink=False)  # relinking would remove each image for a moment
    except NotDvcRepoError:  # a copy of the folder alone
        return ""
    except LockError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        return next((f"dvc {line}" for line in lines if line.startswith("(PID")), "another dvc in this project")
    except (DvcException, OSError) as error:
        reason = " ".join(str(error).split())
        raise CaptureError(
            f"{record}: not updated ({reason}); all captures are in place: correct this, then run pinspect add again"
        ) from error
    return ""


def _repair(record: Path) -> None:
    """Replace a record that a kill has cut off, since DVC writes it in place, by one without a hash."""
    text = record.read_bytes()
    try:
        is_whole = yaml.safe_load(text)["outs"][0]["path"] == IMAGES
    except (yaml.YAMLError, LookupError, TypeError):
        is_whole = _CONFLICT in text
    if not is_whole:
        record.write_text(f"outs:\n- path: {IMAGES}\n", encoding="utf-8")


def _require_all_images(folder: Path) -> None:
    """Check that no image of `labels.csv` is missing: `images.dvc` would lose it."""
    present = {name_key(path.name) for path in (folder / IMAGES).iterdir()}
    missing = [row["file"] for _, row in read_table(folder / LABELS) if name_key(row["file"]) not in present]
    if missing:
        raise CaptureError(
            f"{folder / IMAGES}: {len(missing)} images of {LABELS} are missing, such as {missing[0]}; run dvc pull "
            f"{folder / IMAGES_RECORD}, or remove their rows; until then {IMAGES_RECORD} stays as it is"
        )
