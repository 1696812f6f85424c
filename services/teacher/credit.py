"""How much a student may send before it is answered: the credits of one conversation.

A frame costs its bytes and gives them back once it is answered, so what a replica holds of a student stays
bounded whatever buffers lie between them.
"""

from __future__ import annotations

__all__ = ["CreditLine"]


class CreditLine:
    """The credit of one conversation.

    Args:
        num_bytes: all of it.
    """

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._owed = 0
        # Grants go out in quarters: seldom enough to cost nothing, and three quarters are always with the
        # student once all is answered, which is more than any frame.
        self._smallest_grant = max(num_bytes // 4, 1)

    def spend(self, num_bytes: int) -> bool:
        """Takes what a frame costs; False if the student had not that much."""
        if num_bytes > self._left:
            return False
        self._left -= num_bytes
        return True

    def give_back(self, num_bytes: int) -> int:
        """Notes that a frame is answered and returns what to grant now, in bytes; mostly 0."""
        self._owed += num_bytes
        if self._owed < self._smallest_grant:
            return 0
        granted, self._owed = self._owed, 0
        self._left += granted
        return granted
