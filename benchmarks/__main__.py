"""``make bench``: how long the tool's own work takes, without kernels and QEMU."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import cluster, scale, stages

FAULTS = 100_000_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["stages", "cluster", "scale"], help="default: all")
    parser.add_argument("--faults", type=int, default=FAULTS, help=f"in the large recording (default: {FAULTS:,})")
    parser.add_argument("--folder", type=Path, help="where the large recording is made and removed (default: $TMPDIR)")
    parser.add_argument("--write", type=Path, help="a file between whose marks the large recording's table is put, too")
    asked = parser.parse_args()
    if asked.what in (None, "stages"):
        stages.main()
    if asked.what in (None, "cluster"):
        cluster.main()
    if asked.what in (None, "scale"):
        scale.main(asked.faults, asked.folder, asked.write)


if __name__ == "__main__":
    main()
