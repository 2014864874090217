"""Notices of events to one webhook: a run failed or crashed, a promotion, a refusal, a line that has changed.

A notice is one JSON object: `event`, `id`, `time`, `project`, `text` (one line for people, which chat systems show) and
`details`. It is sent at once, three times at most, and is not stored: a notice that nobody takes is logged and lost,
and never fails what it is about.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pinspect.core.errors import PinspectError
from pinspect.registry.settings import load_notify_settings, load_register_settings
from pinspect.registry.webhook import DeliveryError, Webhook, secret

WEBHOOK, TOKEN = "PINSPECT_NOTIFY_WEBHOOK", "PINSPECT_NOTIFY_TOKEN"  # environment variables
PAUSES = (1.0, 3.0)  # s, between two tries

Event = Literal["failed", "crashed", "refused", "promoted", "line-changed"]

_log = logging.getLogger(__name__)


def webhook_of(root: Path) -> str:
    """Return the address for notices of a project: PINSPECT_NOTIFY_WEBHOOK, else `notify.webhook`; empty for nobody.

    Raises:
        ParamsError: settings.yaml cannot be used.
        SecretError: The file that PINSPECT_NOTIFY_WEBHOOK_FILE names cannot be read.
    """
    return secret(WEBHOOK) or load_notify_settings(root).webhook


def notify(
    root: Path, event: Event, id: str, text: str, details: Mapping[str, Any], pauses: Sequence[float] = PAUSES
) -> bool:
    """Send a notice if the project has a webhook. Problems are logged and never raise.

    Args:
        root: The project's folder.
        event: What happened.
        id: Identifies the event: equal for every notice of it.
        text: What happened, in one line.
        details: Figures, as JSON values.
        pauses: Seconds between two tries.

    Returns:
        Whether the receiver confirmed the notice.
    """
    try:
        if not (url := webhook_of(root)):
            return False
        document = {
            "event": event,
            "id": id,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "project": load_register_settings(root).model_name,
            "text": text,
            "details": details,
        }
        with closing(Webhook(url, secret(TOKEN))) as webhook:
            return _send(webhook, document, id, pauses)
    except Exception as error:  # a promotion does not fail because nobody hears of it
        reason = str(error) if isinstance(error, PinspectError) else f"{type(error).__name__}: {error}"
        _log.warning("no notice of the event %r was sent: %s", event, reason)
        return False


def _send(webhook: Webhook, document: Mapping[str, Any], id: str, pauses: Sequence[float]) -> bool:
    for pause in pauses:
        try:
            webhook.post(document, id)
        except DeliveryError:
            time.sleep(pause)
        else:
            return True
    webhook.post(document, id)
    return True
