"""What the page shows of a capture: RAW and DST with the address grid, as the model sees them, or the file itself."""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from pathlib import Path

from pinspect.core.images import read_image
from pinspect.core.layout import NO_ADDRESS, Layout
from pinspect.station.model_client import ModelClient
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import Inspection

CAPTURE = "capture"
_KEPT = 64  # captures whose pictures stay in memory, about 100 kB each
_LONGEST_SIDE = 1280  # px


class ShownPictures:
    """The pictures of inspections, drawn by the model process and kept for a while: a page asks for two of a capture at
    the same moment."""

    def __init__(self, client: ModelClient, store: PictureStore):
        self._client = client
        self._store = store
        self._drawn: OrderedDict[tuple, asyncio.Task] = OrderedDict()

    async def view(self, inspection: Inspection, view: str) -> bytes | None:
        """PNG or JPEG of the single composite; None where the picture is gone or cannot be laid over the line.

        Raises ModelUnavailableError or ModelTimeoutError.
        """
        key = (inspection.sha256, inspection.image_type, inspection.model_version)
        if key not in self._drawn:
            self._drawn[key] = asyncio.create_task(self._draw(inspection))
            while len(self._drawn) > _KEPT:
                self._drawn.popitem(last=False)
        self._drawn.move_to_end(key)
        try:
            return (await asyncio.shield(self._drawn[key])).get(view)
        except Exception:
            self._drawn.pop(key, None)
            raise

    async def _draw(self, inspection: Inspection) -> dict[str, bytes]:
        path = self._store.path(inspection.sha256)
        if path is None:
            return {}
        shape = (inspection.image_type or "").rpartition("_")[0] or None
        content = await asyncio.to_thread(path.read_bytes)
        return await self._client.pictures(content, inspection.file, shape)


def preview(path: Path, max_pixels: int) -> bytes:
    """A JPEG of an image file that every browser shows, whatever format the file has. Raises ImageError."""
    image = read_image(path, max_pixels)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def box(layout: Layout, position: str | None) -> tuple[int, int] | None:
    """Where a pin lies in a composite, in cells from the top left (margins included); None where there is no pin."""
    if position in (None, NO_ADDRESS):
        return None
    address = layout.address(position)
    return address.column, layout.rows.index(address.row) + 1
