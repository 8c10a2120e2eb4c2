"""Time, as the lab needs it: replaced by a simulated one in tests, where hours pass in no time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Durations are monotonic, so that setting this machine's clock, or the host's, moves no deadline."""

    def monotonic(self) -> float:
        """Seconds since some moment."""

    def sleep(self, seconds: float) -> None:
        """Let time pass."""

    def utc(self) -> str:
        """The date, ISO 8601, for people."""


class RealClock:
    """This machine's."""

    def monotonic(self) -> float:
        """See the protocol."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See the protocol."""
        time.sleep(seconds)

    def utc(self) -> str:
        """See the protocol."""
        return datetime.now(UTC).isoformat(timespec="seconds")
