"""The registered version that inspects: it follows the registry, and what cannot be loaded never takes its place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pinspect.core.errors import ModelError, PinspectError, RegistryError
from pinspect.inspection.inspector import CaptureInspector
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import CHALLENGER, CHAMPION, load_registered, number_of, require_version, version_of

_LAST_GOOD = "last_good_version"
_LONGEST_REASON = 500  # characters
_SECONDS_TO_NEXT_TRY = 60.0  # of a version that could not be loaded


@dataclass(frozen=True)
class Version:
    """A registered version that is loaded. number: as the registry counts. alias: why it was taken. inspector: ready to
    inspect. profile: what it learnt from (`evaluation.line_profile`), None where it has packed none."""

    number: str
    alias: str
    loaded_at: datetime
    inspector: CaptureInspector
    profile: Mapping | None


class Champion:
    """The version that has the alias champion; challenger, as long as there is no champion.

    version: the one that is loaded, None before the first. failure: why the registry, or the version that it has now,
    cannot be used; None when all is well. Both are exchanged whole, so that other threads may read them. state: a
    folder that remembers the last good version, for a start at which the newest one is broken.
    """

    def __init__(self, root: Path, settings: RegisterSettings, state: Path) -> None:
        self.version: Version | None = None
        self.failure: PinspectError | None = None
        self._root, self._settings = root, settings
        self._memory = state / _LAST_GOOD
        self._refused, self._next_try = "", 0.0

    def check(self) -> None:
        """Ask the registry, and load what it has now, beside the version that goes on meanwhile. Raises nothing."""
        try:
            number, alias = self._wanted()
        except Exception as error:  # a database that is locked, a folder that may not be read
            self.failure = _explained("the registry", error)
            return
        if self.version and self.version.number == number:
            self.version, self.failure = replace(self.version, alias=alias), None
        elif self._refused != number or time.monotonic() >= self._next_try:
            self._exchange(number, alias)

    def _wanted(self) -> tuple[str, str]:
        with open_registry(self._root, self._settings) as client:
            name = self._settings.model_name
            alias = CHAMPION if version_of(client, name, CHAMPION) else CHALLENGER
            return number_of(require_version(client, name, alias)), alias

    def _exchange(self, number: str, alias: str) -> None:
        try:
            self.version, self.failure = self._loaded(number, alias), None
            self._memory.write_text(number, encoding="utf-8")
        except Exception as error:  # whatever a broken version leads its loaders to
            name = f"{self._settings.model_name} version {number}, the {alias}"
            self.failure = _explained(f"{name}, cannot be loaded", error)
            self._refused, self._next_try = number, time.monotonic() + _SECONDS_TO_NEXT_TRY
            if self.version is None:
                self._fall_back(number)

    def _fall_back(self, broken: str) -> None:
        """Nothing inspects yet, and the newest version cannot: take the one that did before."""
        number = self._memory.read_text(encoding="utf-8").strip() if self._memory.is_file() else ""
        if number in ("", broken):
            return
        try:
            self.version = self._loaded(number, "last good")
        except Exception as error:
            self.failure = _explained(f"{self.failure}; nor can version {number}", error)

    def _loaded(self, number: str, alias: str) -> Version:
        model, _ = load_registered(self._root, self._settings, number)
        packed = model.unwrap_python_model()
        packed.inspector.try_out()
        return Version(number, alias, datetime.now(UTC), packed.inspector, packed.profile)


def _explained(what: str, error: Exception) -> PinspectError:
    """An error as a user is told it; one of the registry keeps its kind."""
    if isinstance(error, RegistryError):
        return error
    told = str(error) if isinstance(error, PinspectError) else f"{type(error).__name__}: {error}"
    return ModelError(f"{what}: {' '.join(told.split())[:_LONGEST_REASON]}")
