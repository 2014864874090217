"""What the rows of the chat dataset come from: the labels of the captures, and what each composite shows."""

from __future__ import annotations

from pathlib import Path

from pinspect.core.answers import VERDICT
from pinspect.core.manifests import MANIFEST, iterate_manifest
from pinspect.core.rows import Row
from pinspect.core.temporary_database import temporary_database


class Provenance:
    """The labels and the composites, as the stages before the chat dataset have written them.

    Args:
        data: Folder of the stages' outputs, with raw/manifest.csv and composited/manifest.csv.

    Raises:
        StageInputError: A manifest is missing.
    """

    def __init__(self, data: Path):
        self._database = temporary_database(f"""
            CREATE TABLE labels (file PRIMARY KEY, {", ".join(VERDICT)}) WITHOUT ROWID;
            CREATE TABLE composites (file PRIMARY KEY, raw_file) WITHOUT ROWID;
        """)
        for table, folder, columns in (
            ("labels", "raw", ("file", *VERDICT)),
            ("composites", "composited", ("file", "raw_file")),
        ):
            insert = f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(columns))})"
            for rows in iterate_manifest(data / folder / MANIFEST, columns):
                self._database.executemany(insert, rows[list(columns)].itertuples(index=False, name=None))

    def columns(self, row: Row) -> dict[str, object]:
        """Return the label of a row's capture, and the raw file that its last image shows; None for what is unknown."""
        query = f"SELECT {', '.join(VERDICT)} FROM labels WHERE file = ?"
        label = self._database.execute(query, (str(row.get("file")),)).fetchone() or (None,) * len(VERDICT)
        images = row.get("images")
        shown = [self._shown(str(image)) for image in images] if isinstance(images, list) else []
        return {
            **{f"label_{field}": value for field, value in zip(VERDICT, label, strict=True)},
            "shown": shown[-1] if shown and all(shown) else None,
        }

    def _shown(self, image: str) -> str | None:
        (raw_file,) = self._database.execute("SELECT raw_file FROM composites WHERE file = ?", (image,)).fetchone() or (
            None,
        )
        return raw_file
