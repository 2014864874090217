"""The registered version that inspects. It follows the registry; a version that cannot be loaded never takes over."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pinspect.core.errors import ModelError, PinspectError, RegistryError
from pinspect.inspection.inspector_process import InspectorProcess
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import CHALLENGER, CHAMPION, load_registered, number_of, require_version, version_of

_LAST_GOOD = "last_good_version"
_LONGEST_REASON = 500  # characters
_SECONDS_TO_NEXT_TRY = 60.0  # for a version that could not be loaded


@dataclass(frozen=True)
class Version:
    """A registered version that is loaded.

    Attributes:
        number: Version number in the registry.
        alias: Alias for which the version was chosen.
        loaded_at: Time at which it was loaded (UTC).
        inspector: Inspects captures, with the code of the version.
    """

    number: str
    alias: str
    loaded_at: datetime
    inspector: InspectorProcess


class Champion:
    """The version with the alias `champion`, or `challenger` while there is no champion.

    `version` and `failure` are replaced as a whole, so that other threads can read them.

    Args:
        root: Folder of the project.
        settings: Where the models are registered.
        state: Folder that remembers the last good version, for a start while the newest version is broken.

    Attributes:
        version: The loaded version; None before the first.
        failure: Why the registry or its current version cannot be used; None if both can.
    """

    def __init__(self, root: Path, settings: RegisterSettings, state: Path) -> None:
        self.version: Version | None = None
        self.failure: PinspectError | None = None
        self._root, self._settings = root, settings
        self._memory = state / _LAST_GOOD
        self._refused, self._next_try = "", 0.0

    def current(self) -> Version:
        """Return the loaded version; load it again if its process has ended.

        Raises:
            PinspectError: No version is loaded, with the reason.
        """
        if self.version and self.version.inspector.ended:
            self.check()
        if self.version is None or self.version.inspector.ended:
            raise self.failure or ModelError("no model is loaded yet")
        return self.version

    def check(self) -> None:
        """Load the registry's current version if it changed; the previous one works on meanwhile. Never raises."""
        try:
            number, alias = self._current()
        except Exception as error:  # such as a locked database or an unreadable folder
            self.failure = _explained("the registry cannot be read", error)
            return
        if self.version and self.version.number == number and not self.version.inspector.ended:
            self.version, self.failure = replace(self.version, alias=alias), None
        elif self._refused != number or time.monotonic() >= self._next_try:
            self._exchange(number, alias)

    def _current(self) -> tuple[str, str]:
        with open_registry(self._root, self._settings) as client:
            name = self._settings.model_name
            alias = CHAMPION if version_of(client, name, CHAMPION) else CHALLENGER
            return number_of(require_version(client, name, alias)), alias

    def _exchange(self, number: str, alias: str) -> None:
        try:
            loaded = self._load(number, alias)
            self.failure = None  # first: replacing the old version also waits for the end of its process
            self.version = loaded
            self._memory.write_text(number, encoding="utf-8")
        except Exception as error:  # a broken version can make its loaders raise anything
            name = f"{self._settings.model_name} version {number}, the {alias}"
            self.failure = _explained(f"{name}, cannot be loaded", error)
            self._refused, self._next_try = number, time.monotonic() + _SECONDS_TO_NEXT_TRY
            if self.version is None:
                self._fall_back(number)

    def _fall_back(self, broken: str) -> None:
        """Load the last good version, at a start while the newest version is broken."""
        number = self._memory.read_text(encoding="utf-8").strip() if self._memory.is_file() else ""
        if number in ("", broken):
            return
        try:
            self.version = self._load(number, "last good")
        except Exception as error:
            self.failure = _explained(f"{self.failure}; version {number} cannot be loaded either", error)

    def _load(self, number: str, alias: str) -> Version:
        inspector = load_registered(self._root, self._settings, number)
        inspector.try_out()
        return Version(number, alias, datetime.now(UTC), inspector)


def _explained(what: str, error: Exception) -> PinspectError:
    """An error in one line; an error of the registry keeps its class."""
    if isinstance(error, RegistryError):
        return error
    reason = str(error) if isinstance(error, PinspectError) else f"{type(error).__name__}: {error}"
    return ModelError(f"{what}: {' '.join(reason.split())[:_LONGEST_REASON]}")
