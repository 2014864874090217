"""What the page's process and the model process exchange: the state of the model, and the reasons for no answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pinspect.core.errors import PinspectError


class ModelUnavailableError(PinspectError):
    """The model process does not answer: it has ended, or no model is loaded yet. A later try may succeed."""


class ModelTimeoutError(PinspectError):
    """The answer did not come in time."""


class QueueFullError(PinspectError):
    """The queue for the model is full. A later try may succeed."""


@dataclass(frozen=True)
class ModelHealth:
    """State of the model process.

    Attributes:
        version: Registered version that answers; None before the first model is loaded.
        alias: Alias for which that version was chosen.
        loaded_at: Time at which that version was loaded (UTC).
        queue: Number of captures that wait for a forward pass.
        last_error: Why the registry or its newest version cannot be used; None if both can.
        batches: Forward passes since the process started.
        captures: Captures answered by those forward passes.
        busy_seconds: Duration of the longest step in progress (preparing a capture, or a forward pass); 0 when idle.
        profile: Line profile of the version (`inspection.line_profile`); None if the version has none.
    """

    version: str | None = None
    alias: str | None = None
    loaded_at: datetime | None = None
    queue: int = 0
    last_error: str | None = None
    batches: int = 0
    captures: int = 0
    busy_seconds: float = 0.0
    profile: Mapping[str, Any] | None = None

    @property
    def mean_batch(self) -> float:
        """Captures per forward pass; 0 before the first one."""
        return self.captures / max(1, self.batches)
