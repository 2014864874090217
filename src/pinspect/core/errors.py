"""Everything that pinspect raises on purpose, as one tree.

    PinspectError                      a fault of the user or of a file, shown in one line (exit code 2)
    ├── ParamsError                    params.yaml, settings.yaml: unknown key, value out of range
    ├── CaptureError                   a capture or its row in labels.csv cannot be used
    │   └── ImageError                 the image file itself cannot be read as a photograph
    ├── UnitSpaceError                 the references of a shape make no unit space
    │   └── AlignmentError             a capture cannot be aligned to the unit space
    ├── AnswerFormatError              an answer breaks the contract
    ├── AnswerCheckFailed              rows of the chat dataset fail validation
    ├── ModelError                     base, adapter or processor is missing, corrupt or of another kind
    ├── StageInputError                a file that an earlier stage makes is missing
    │   └── InputChangedError          an input of a stage changed while it ran: try again (exit code 75)
    ├── RegistryError                  the MLflow registry refuses a call, or cannot be used
    │   └── RegistryUnreachableError   its server does not answer: try again later (exit code 75)
    ├── EngineError                    the cluster that makes pictures cannot be used
    │   └── EngineUnreachableError     its scheduler does not answer: try again later (exit code 75)
    └── PromotionRefused               the challenger does not meet a promotion rule (exit code 3)

Entry points `run` their work: a `PinspectError` shows its text only, and its `exit_code` becomes that of the process.
So does a full disk. Any other exception is a defect of pinspect and keeps its traceback.
"""

import errno
import sqlite3
import sys
from collections.abc import Callable


class PinspectError(Exception):
    """Base of all errors that pinspect explains to its user in one line."""

    exit_code = 2


class ParamsError(PinspectError):
    """`params.yaml` or `settings.yaml` holds an unknown key or a value that cannot be used."""


class CaptureError(PinspectError):
    """A capture, or its row in `labels.csv`, cannot be used."""


class ImageError(CaptureError):
    """An image file cannot be read as a photograph."""


class UnitSpaceError(PinspectError):
    """The references of one shape do not make a unit space."""


class AlignmentError(UnitSpaceError):
    """A capture cannot be aligned to the unit space of its shape."""


class AnswerFormatError(PinspectError):
    """An answer string breaks the answer contract."""


class AnswerCheckFailed(PinspectError):
    """Rows of the chat dataset failed the answer checks."""


class ModelError(PinspectError):
    """A base model, an adapter or a processor is missing, corrupt or of another kind."""


class StageInputError(PinspectError):
    """A stage was started before the stage that makes its input."""


class InputChangedError(StageInputError):
    """An input of a stage changed while the stage ran, so its output belongs to neither state."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the data


class RegistryError(PinspectError):
    """The MLflow registry refuses a call, or cannot be used."""


class RegistryUnreachableError(RegistryError):
    """The MLflow server does not answer; trying again later may help."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the data


class EngineError(PinspectError):
    """The cluster that makes the pictures of a stage cannot be used."""


class EngineUnreachableError(EngineError):
    """The scheduler of the cluster does not answer; trying again later may help."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong with the data


class PromotionRefused(PinspectError):
    """A challenger does not meet a promotion rule."""

    exit_code = 3


def run(main: Callable[[], None]) -> None:
    """Run `main`; print the text of a `PinspectError` to stderr and exit with its exit code.

    A full disk is shown in one line, too, with the exit code of a `PinspectError`.
    """
    try:
        main()
    except PinspectError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except (OSError, sqlite3.OperationalError) as error:
        place = _full_disk(error)
        if not place:
            raise
        print(f"{place}: the disk is full; free some space and run this again", file=sys.stderr)
        sys.exit(PinspectError.exit_code)


def _full_disk(error: OSError | sqlite3.OperationalError) -> str:
    """Return what could not be written because a disk is full, "" if another error happened.

    SQLite does not report which of its files it is.
    """
    if isinstance(error, OSError):
        return str(error.filename or "a file") if error.errno == errno.ENOSPC else ""
    full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return "a database or the folder SQLITE_TMPDIR" if full else ""
