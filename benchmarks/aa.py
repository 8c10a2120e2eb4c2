"""The base against itself, again and again with other seeds: nothing may come out as improved or regressed.

    .venv/bin/python -m benchmarks.aa configs/quickstart.yaml --repeats 20

Each repeat is a run of CONFIG whose arms are its base and the base once more under another name; everything else stays
as the config says, or as the options narrow it down. Repeats that are in the results already are not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.analysis.model import COMPARISON_FILE, Comparison, from_json

AGAIN = "again"
VERDICTS = ("improved", "regressed", "equivalent", "inconclusive")


@dataclass(frozen=True)
class Repeat:
    """What one run came to: verdicts of its comparisons and of its cells, and how long it took."""

    seed: int
    metrics: Counter[str]
    cells: Counter[str]
    boots: int
    lost: int  # trials without a recording: a hang of the emulator, say
    wall_s: float

    @property
    def false_calls(self) -> int:
        return self.metrics["improved"] + self.metrics["regressed"]


def derive(config: Path, folder: Path, seed: int, cells: list[str], boots: int | None) -> Path:
    """CONFIG as an A/A experiment in ``folder``, its relative paths made absolute."""
    document: dict[str, Any] = yaml.safe_load(config.read_text("utf-8"))

    def absolute(name: object) -> str:
        return str((config.parent / str(name)).resolve())

    document["name"] = f"aa-{document['name']}"
    document["kernel"]["fragments"] = [absolute(name) for name in document["kernel"].get("fragments", [])]
    for source in document["kernel"]["sources"]:
        if isinstance(source.get("tree"), str):
            source["tree"] = absolute(source["tree"])
        elif isinstance(found := source.get("tree") or source.get("tarball"), dict) and found.get("path"):
            found["path"] = absolute(found["path"])
    base, patches = next(iter(document["arms"].items()))
    same = [absolute(name) for name in patches or []]
    document["arms"] = {base: same, AGAIN: same}
    unknown = set(cells) - set(document["cells"])
    if unknown:
        raise SystemExit(f"{config} has no cell {', '.join(sorted(unknown))}; it has {', '.join(document['cells'])}")
    document["cells"] = {name: cell for name, cell in document["cells"].items() if not cells or name in cells}
    schedule = document.setdefault("schedule", {})
    schedule["seed"] = seed
    if boots is not None:
        document["schedule"] = {"boots": boots, "seed": seed, "order": schedule.get("order", "abba")}
    # Only noise is asked for here; the checks would want the cells that were left out.
    document["checks"] = ["kernel_log"]
    for key in ("stale", "selftests", "trace"):
        document.pop(key, None)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{document['name']}-seed{seed}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return path


def run(config: Path, results: Path, seed: int) -> Repeat:
    """Run one repeat with ``orch run``, whose progress passes through; what is there already is only read."""
    began = time.monotonic()
    if not list(results.glob(f"*/{COMPARISON_FILE}")):
        argv = [str(Path(sys.executable).with_name("orch")), "run", str(config), "--results", str(results)]
        ended = subprocess.run(argv, stdout=subprocess.DEVNULL, check=False)
        # 2 is also a run that came to its end with a trial that did not; the table counts those.
        if ended.returncode not in (0, 2) or not list(results.glob(f"*/{COMPARISON_FILE}")):
            raise SystemExit(f"orch run {config} ended with {ended.returncode}")
    (path,) = results.glob(f"*/{COMPARISON_FILE}")
    found = from_json(Comparison, path)
    return Repeat(
        seed,
        Counter(item.verdict for item in found.comparisons),
        Counter(item.verdict for item in found.verdicts),
        max(item.pairs for item in found.comparisons),
        len(found.failures),
        time.monotonic() - began,
    )


def lines(repeats: list[Repeat]) -> list[str]:
    """A table, and the sum."""
    made = ["| seed | boots | lost | " + " | ".join(VERDICTS) + " | s |", "| --- " * 8 + "|"]
    for item in repeats:
        counts = " | ".join(str(item.metrics[verdict]) for verdict in VERDICTS)
        made.append(f"| {item.seed} | {item.boots} | {item.lost} | {counts} | {item.wall_s:.0f} |")
    total = sum((item.metrics for item in repeats), Counter[str]())
    wrong = sum(item.false_calls > 0 for item in repeats)
    made.append(
        f"{len(repeats)} repeats, {total.total()} comparisons: {total['improved']} improved, {total['regressed']}"
        f" regressed, {total['equivalent']} equivalent, {total['inconclusive']} inconclusive;"
        f" {wrong} repeats with a false call, {sum(item.lost for item in repeats)} trials lost"
    )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aa", description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--repeats", type=int, default=20, help="runs, with seeds from --seed on (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the first (default: 1)")
    parser.add_argument("--cell", action="append", default=[], help="only this cell; may be given several times")
    parser.add_argument("--boots", type=int, help="of each arm, fixed, instead of the config's schedule")
    parser.add_argument("--results", type=Path, default=Path("results/aa"), help="default: %(default)s")
    asked = parser.parse_args()
    repeats = []
    for seed in range(asked.seed, asked.seed + asked.repeats):
        narrowed = "-".join([asked.config.stem, *asked.cell, *([f"boots{asked.boots}"] if asked.boots else [])])
        folder = asked.results / narrowed / f"seed{seed}"
        config = derive(asked.config, folder, seed, asked.cell, asked.boots)
        repeats.append(run(config, folder, seed))
        print(lines(repeats[-1:])[-1], flush=True)
    print("\n".join(lines(repeats)))
    raise SystemExit(1 if any(item.false_calls for item in repeats) else 0)


if __name__ == "__main__":
    main()
