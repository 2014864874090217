"""Keeps the Prefect API to this checkout's user: a password, CSRF protection and an origin check in `prefect.toml`.

Whoever can use the API can run commands on the worker's machine, and a Prefect server without these settings answers
every web page that the machine's browser shows. Prefect reads `prefect.toml` in the current folder, so server, worker,
flows and the command `prefect` share it. Variables of the environment (`PREFECT_API_AUTH_STRING`) take precedence.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

FILE = "prefect.toml"
_CONTENT = """\
# Made at the first start; readable by this user only, ignored by git. Whoever has it can run commands as this user.
# The sign-in page of http://127.0.0.1:4200 asks for the auth_string. To change it: delete this file, start again.
[api]
auth_string = "pinspect:{password}"

[client]
csrf_support_enabled = true

[server.api]
auth_string = "pinspect:{password}"
csrf_protection_enabled = true
cors_allowed_origins = "http://127.0.0.1:4200"

[server.ui]
api_url = "/api"
"""


def ensure_access(root: Path) -> Path:
    """Create `prefect.toml` with a new random password unless the project has it.

    Args:
        root: The project's folder.

    Returns:
        The file, readable by its owner only. If several processes call this at once, the first file stays.
    """
    path = root / FILE
    if not path.exists():
        partial = root / f".{FILE}.{os.getpid()}.partial"
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_CONTENT.format(password=secrets.token_urlsafe(32)))
        try:
            os.link(partial, path)  # unlike a rename, it never replaces the file of another process
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    path.chmod(0o600)
    return path
