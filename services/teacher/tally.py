"""What a conversation asked for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass
class Tally:
    """What a conversation asked for: turns and their tokens, replays included, and bytes of all frames."""

    turns: int = 0
    tokens: int = 0
    bytes: int = 0
