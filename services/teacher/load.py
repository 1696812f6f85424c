"""How busy a replica is: what its autoscaling and its operators go by."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Load", "LoadMeter"]

_WINDOW_S = 10.0


@dataclass(frozen=True)
class Load:
    """What a replica has to do.

    Attributes:
        queued_tokens: rows x positions that wait.
        tokens_per_s: rows x positions that it last computed in a second of computation; 0: none yet.
        busy_share: the share of the last seconds that it spent computing, 0 to 1.
        retained_bytes: of graphs that wait for their gradients.
    """

    queued_tokens: int
    tokens_per_s: float
    busy_share: float
    retained_bytes: int

    @property
    def queue_s(self) -> float:
        """How long what waits will take, in seconds."""
        return self.queued_tokens / self.tokens_per_s if self.tokens_per_s else 0.0


class LoadMeter:
    """Counts what was computed in the last seconds; from any thread.

    Args:
        clock: seconds that only go forward.
        window_s: over how many of them.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, window_s: float = _WINDOW_S) -> None:
        self._clock = clock
        self._window_s = window_s
        self._start_s = clock()
        self._computed: deque[tuple[float, float, int]] = deque()  # its end, seconds, tokens
        self._running: deque[float] = deque()  # when passes that are under way began
        self._spent_s, self._num_tokens = 0.0, 0  # of what was computed
        self._tokens_per_s = 0.0
        self._lock = threading.Lock()

    def started(self) -> None:
        """Notes that a pass begins; they end in this order."""
        with self._lock:
            self._running.append(self._clock())

    def computed(self, seconds: float, num_tokens: int) -> None:
        """Notes a pass that has just ended."""
        with self._lock:
            if self._running:
                self._running.popleft()
            self._computed.append((self._clock(), seconds, num_tokens))
            self._spent_s += seconds
            self._num_tokens += num_tokens
            self._forget()
            if self._num_tokens and self._spent_s > 0:
                self._tokens_per_s = self._num_tokens / self._spent_s

    def load(self, queued_tokens: int, retained_bytes: int) -> Load:
        """Returns the load, with what waits and what is kept now."""
        with self._lock:
            self._forget()
            now_s = self._clock()
            begin_s = max(now_s - self._window_s, self._start_s)
            busy_s = sum(min(seconds, end_s - begin_s) for end_s, seconds, _ in self._computed)
            if self._running:
                busy_s += now_s - max(self._running[0], begin_s)
            tokens_per_s = self._tokens_per_s
        return Load(
            queued_tokens=queued_tokens,
            tokens_per_s=tokens_per_s,
            busy_share=min(busy_s / max(now_s - begin_s, 1e-6), 1.0),
            retained_bytes=retained_bytes,
        )

    def _forget(self) -> None:
        oldest_s = self._clock() - self._window_s
        while self._computed and self._computed[0][0] < oldest_s:
            _, seconds, num_tokens = self._computed.popleft()
            self._spent_s -= seconds
            self._num_tokens -= num_tokens
        if not self._computed:
            self._spent_s = 0.0  # what rounding has left of it
