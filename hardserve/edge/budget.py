"""What all requests and responses together keep of their clients' bytes: counted, and bounded.

One connection's share is bounded by `limits.header`, `limits.body` and `limits.response_buffer`, but ten thousand
shares are not: here is the sum. What a connection keeps is a `Holding`; a request's is updated by the I/O thread while
it arrives and released by whoever drops the request, a response's is updated by whichever thread holds the
connection's lock. Only what does not fit into one read or one send is ever counted, so an ordinary request pays
nothing.

No client, an address as edge.clients counts it, may hold more than half of either kind with its requests: otherwise
one that fills the budget and then drips would have everybody else's uploads refused for as long as it can drip.
"""

from __future__ import annotations

import math
import threading

# A disk that is full is said to be full so often: whoever reads slowly, and there may be thousands, meets it again and
# again.
NEWS_S = 60.0


class Budget:
    """Bytes kept in memory and in temporary files, each with its limit. Any thread."""

    __slots__ = ("_by_client", "_failed_at", "_lock", "file_limit", "files", "memory", "memory_limit", "responses")

    def __init__(self, memory_limit: int, file_limit: int) -> None:
        self.memory_limit = memory_limit
        self.file_limit = file_limit
        self.memory = 0
        self.files = 0
        self.responses = 0  # of the memory
        self._by_client: dict[str, list[int]] = {}  # memory and files, of clients that hold anything
        self._failed_at = -math.inf
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Budget memory={self.memory}/{self.memory_limit} files={self.files}/{self.file_limit}>"

    @property
    def response_limit(self) -> int:
        """What responses may have of the memory. They may go past it; the rest is for requests in any case."""
        return self.memory_limit * 3 // 4

    @property
    def memory_short(self) -> bool:
        """Whether what could be elsewhere should not be in memory."""
        return self._memory_of_requests() >= self.memory_limit

    def _memory_of_requests(self) -> int:
        """Return what is kept of requests, and of responses as much as they may have."""
        return self.memory - max(0, self.responses - self.response_limit)

    def allows(self, client: str, memory: int, files: int) -> bool:
        """Return whether a request of `client` may keep so many more bytes. "" is nobody in particular.

        Only what is to grow is asked about: where memory is short, a file may still be written.
        """
        own_memory, own_files = self._by_client.get(client, (0, 0))
        share = 2 if client else 1
        return _fits(memory, self._memory_of_requests(), own_memory, self.memory_limit, share) and _fits(
            files, self.files, own_files, self.file_limit, share
        )

    def add(self, client: str, memory: int, files: int) -> None:
        """Count what is kept from now on, or, where negative, no longer."""
        with self._lock:
            self.memory += memory
            self.files += files
            if client:
                held = self._by_client.setdefault(client, [0, 0])
                held[0] += memory
                held[1] += files
                if held == [0, 0]:
                    del self._by_client[client]

    def keep_response(self, memory: int) -> None:
        """Count what is kept in memory of a response from now on, or, where negative, no longer."""
        with self._lock:
            self.memory += memory
            self.responses += memory

    def is_news(self, now: float) -> bool:
        """Take note that a file could not be written (monotonic seconds); return whether to log that."""
        with self._lock:
            news = now - self._failed_at >= NEWS_S
            if news:
                self._failed_at = now
            return news


def _fits(more: int, kept: int, own: int, limit: int, share: int) -> bool:
    return more <= 0 or (kept + more <= limit and own + more <= limit // share)


class Holding:
    """What one request keeps."""

    __slots__ = ("_budget", "_files", "_memory", "client")

    def __init__(self, budget: Budget, client: str) -> None:
        self._budget = budget
        self.client = client
        self._memory = 0
        self._files = 0

    def __repr__(self) -> str:
        return f"<Holding memory={self._memory} files={self._files}>"

    def update(self, memory: int, files: int) -> bool:
        """Say how much is kept now; return whether it may be. What may not be kept is counted until `release`."""
        more_memory, more_files = memory - self._memory, files - self._files
        fits = (more_memory <= 0 and more_files <= 0) or self._budget.allows(self.client, more_memory, more_files)
        self._memory, self._files = memory, files
        self._budget.add(self.client, more_memory, more_files)
        return fits

    def release(self) -> None:
        """Keep nothing any more. May be called twice, by one thread after another."""
        self.update(0, 0)
