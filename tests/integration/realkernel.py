"""The real kernels that the slow tests build: one full build and, in its object directory, what patches change."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PLANTED = ROOT / "tests/integration/planted.yaml"
FRAGMENTS = [ROOT / "configs/kernel/host.config"]
ARMS = {
    "base": (),
    "v1": (ROOT / "patches/hva-retry/v1.patch",),
    "comment": (ROOT / "patches/planted/comment.patch",),
    "broken": (ROOT / "patches/planted/broken.patch",),
}
