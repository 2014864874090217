"""Pictures on the page: RAW and DST with the address grid, as the model sees them, or the file itself."""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from pathlib import Path

from pinspect.core.images import read_image
from pinspect.core.layout import NO_ADDRESS, Layout
from pinspect.station.model_process import ModelProcess
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import Inspection

CAPTURE = "capture"
_CACHED = 64  # captures whose pictures stay in memory, about 100 kB each
_LONGEST_SIDE = 1280  # px


class ShownPictures:
    """Draws the pictures of inspections in the model process and caches them: a page loads two per capture at once."""

    def __init__(self, model: ModelProcess, store: PictureStore):
        self._model = model
        self._store = store
        self._drawn: OrderedDict[tuple, asyncio.Task] = OrderedDict()

    async def view(self, inspection: Inspection, view: str) -> bytes | None:
        """Return the single composite of a view.

        Args:
            inspection: The inspection of the capture.
            view: `RAW` or `DST`.

        Returns:
            Bytes of a JPEG; None if the capture is no longer stored or cannot be aligned.

        Raises:
            ModelUnavailableError: No model answers.
            ModelTimeoutError: No answer in time.
        """
        key = (inspection.sha256, inspection.image_type, inspection.model_version)
        if key not in self._drawn:
            self._drawn[key] = asyncio.create_task(self._draw(inspection))
            while len(self._drawn) > _CACHED:
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
        return await self._model.pictures(inspection.file, content, shape)


def preview(path: Path, max_pixels: int) -> bytes:
    """Convert an image file of any known format to a JPEG that every browser shows, at most 1280 px per side.

    Raises:
        ImageError: The file cannot be read, or has more than `max_pixels` pixels.
    """
    image = read_image(path, max_pixels)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def box(layout: Layout, position: str | None) -> tuple[int, int] | None:
    """Return the column and row of a pin's cell in a composite, margins included; None if `position` names no pin."""
    if position in (None, NO_ADDRESS):
        return None
    address = layout.address(position)
    return address.column, layout.rows.index(address.row) + 1
