"""Results for tests of the results table."""

from datetime import UTC, datetime

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHA256 = "0" * 64
BEND = {"judgement": "defective", "defect_mode": "bend", "defect_position": "X:3, Y:U"}
GOOD = {"judgement": "passed", "defect_mode": "passed", "defect_position": "passed"}


def keep(table, id: str, received: datetime = NOON, **record) -> bool:
    result = {"file": f"{id}.jpg", "error": None, "model_version": "3"} | GOOD | record
    return table.record(result, id=id, sha256=SHA256, source="station", received=received)


def judge(table, id: str, verdict: dict, capture: str | None = None) -> None:
    table.correct(id, **verdict, by="Sato", at=NOON, capture=capture)


def ids(inspections) -> list[str]:
    return [inspection.id for inspection in inspections]
