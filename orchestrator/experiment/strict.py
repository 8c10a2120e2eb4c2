"""How each type of an experiment checks itself: no text that looks like a number, no key that it does not know."""

from __future__ import annotations

from pydantic import ConfigDict

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
