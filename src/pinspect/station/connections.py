"""The station's connections: how many there are, and how long one may take to ask.

uvicorn itself waits without end for a request that is never completed, so that half-sent requests would use up the
file descriptors of the process.
"""

from __future__ import annotations

import asyncio
import resource

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS_FOR_HEADERS = 10.0
_MOST_CONNECTIONS = 400


class HeaderTimeoutProtocol(H11Protocol):
    """A connection that is closed if it does not complete the headers of a request in time.

    Where there are too many connections, the one that has waited longest for its headers is closed for a new one.
    """

    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > most_connections():
            ours = [each for each in self.connections if isinstance(each, HeaderTimeoutProtocol)]
            waiting = {each._waits.when(): each for each in ours if each._waits}
            waiting[min(waiting)].close()

    def data_received(self, data: bytes) -> None:
        """Handle data; wait on while the headers of a request are incomplete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._waits is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def close(self) -> None:
        """Close the connection at once, without an answer."""
        self._stop_waiting()
        self.transport.abort()

    def _wait(self) -> None:
        self._waits = self.loop.call_later(SECONDS_FOR_HEADERS, self.close)

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits.cancel()
            self._waits = None


def most_connections() -> int:
    """Return the most connections at a time: 400, or half of the files that the process may open."""
    return min(_MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
