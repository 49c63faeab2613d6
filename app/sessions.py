"""Who is here: one visit for each browser tab, which ends with it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from progress import VisitEnded
from sources import Source
from visits import Visit

IDLE_SECONDS = 3600  # a visit that nobody uses for so long is over
LOOK_SECONDS = 300  # between two looks for such visits
SERVED = "served"  # where Gradio keeps uploads and downloads


class Visits:
    """All visitors, by the session of their browser tab.

    Args:
        root (`Path`):
            Where their folders are made.
        source ([`Source`]):
            What a new visitor finds.
    """

    def __init__(self, root: Path, source: Source):
        self.root, self.source = root, source
        self._lock = threading.Lock()
        self._visits: dict[str, Visit] = {}
        self._left: dict[str, float] = {}  # sessions of closed tabs, and when they were closed
        threading.Thread(target=self._look, daemon=True).start()

    def of(self, session: str) -> Visit:
        """Returns the visit of a session, a new one if there is none.

        Raises:
            VisitEnded: If the tab was closed: what it had asked for before comes too late.
        """
        with self._lock:
            if session in self._left:
                raise VisitEnded
            if session not in self._visits:
                self._visits[session] = Visit(self.root, self.source)
            visit = self._visits[session]
            visit.used = time.monotonic()
        return visit

    def leave(self, session: str) -> None:
        """Ends the visit of a browser tab that was closed or loaded anew."""
        with self._lock:
            self._left[session] = time.monotonic()
            visit = self._visits.pop(session, None)
        if visit is not None:
            self._end(visit)

    def end_idle(self) -> None:
        """Ends the visits that nobody used for an hour: a tab may disappear without a word."""
        past = time.monotonic() - IDLE_SECONDS
        with self._lock:
            idle = [session for session, visit in self._visits.items() if visit.used < past]
            over = [self._visits.pop(session) for session in idle]
            self._left = {session: left for session, left in self._left.items() if left >= past}
        for visit in over:
            self._end(visit)

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            self.end_idle()

    def _end(self, visit: Visit) -> None:
        visit.close()
        for served in (self.root / SERVED).glob(f"*/*{visit.token}*"):
            served.unlink(missing_ok=True)
