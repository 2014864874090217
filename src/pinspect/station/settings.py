"""The section `station` of `settings.yaml`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pinspect.core.yaml_file import PositiveInt, Section, Share, load_settings

ReceiverName = Annotated[str, Field(pattern=r"\A[a-z][a-z0-9-]{0,30}\z")]


def _check_names(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"expected a regular expression ({error})") from None
    if pattern and not ({"serial", "lot"} >= set(groups) > set()):
        raise ValueError("expected the named groups (?P<serial>...) and (?P<lot>...), or one of them")
    return pattern


class DriftSettings(Section):
    """When the station reports that the line has changed since the model was trained.

    Attributes:
        window: Number of the latest captures that are compared with the line profile.
        minimum: Fewest captures for which a change is reported.
        significance: Level of the two-sample Kolmogorov-Smirnov test, divided among all quantities.
        minimum_effect: KS distances below this are ignored, even if statistically significant.
    """

    window: PositiveInt = 200
    minimum: PositiveInt = 30
    significance: Annotated[float, Field(gt=0, lt=1)] = 0.001
    minimum_effect: Share = 0.3


class StationSettings(Section):
    """The inspection station: where it listens, what it accepts, how it keeps results.

    Attributes:
        host: Address to listen on; anything beyond loopback needs a token.
        port: TCP port; 0 for any free one.
        language: Language of the page until its reader chooses another.
        results: SQLAlchemy URL of the results table; empty for SQLite in `data/station/`.
        keep_days: Days for which uploaded pictures are kept; results are kept forever.
        keep_bytes: Most bytes of kept pictures; the oldest beyond are deleted.
        batch_size: Most captures in one forward pass.
        queue: Most captures that wait; a further one is refused with 429.
        timeout_seconds: Longest time that a request waits for its answer.
        champion_check_seconds: Seconds between two checks of the registry for a new champion.
        upload_bytes: Largest accepted image file, in bytes.
        images_a_request: Most images in one request.
        bytes_at_once: Most bytes of all uploads at one moment; a further one is refused with 503.
        requests_a_minute: Most requests of one client in a minute.
        names: Regular expression with the groups `serial` and `lot`, searched in file names; empty for none.
        receivers: Name -> address of what gets every result (`receivers.open_receiver`).
        drift: When the station reports drift.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    language: Literal["en", "ja"] = "en"
    results: str = ""
    keep_days: PositiveInt = 90
    keep_bytes: PositiveInt = 20_000_000_000
    batch_size: Annotated[int, Field(ge=1, le=256)] = 16
    queue: PositiveInt = 64
    timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    champion_check_seconds: Annotated[float, Field(gt=0)] = 5.0
    upload_bytes: PositiveInt = 20_000_000
    images_a_request: PositiveInt = 16
    bytes_at_once: PositiveInt = 640_000_000
    requests_a_minute: PositiveInt = 1200
    names: Annotated[str, AfterValidator(_check_names)] = ""
    receivers: dict[ReceiverName, str] = Field(default_factory=dict)
    drift: DriftSettings = DriftSettings()


def load_station_settings(root: Path) -> StationSettings:
    """Read the section `station` of the project in `root`. Raises ParamsError."""
    return load_settings(root, "station", StationSettings)
