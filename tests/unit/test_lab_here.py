"""lab/here.py: how this machine is set, read from made-up files of /sys and /proc."""

from __future__ import annotations

from pathlib import Path

from orchestrator import run
from orchestrator.lab import tuning
from orchestrator.lab.here import Here, settings
from orchestrator.manifest import MITIGATION, Manifest
from orchestrator.store import MANIFEST, load_json

CPU = tuning.CPU


def machine(root: Path, files: dict[str, str]) -> Here:
    for path, text in files.items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.lstrip("/")).write_text(f"{text}\n")
    return Here(root)


FILES = {
    f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "powersave",
    f"{CPU}/intel_pstate/no_turbo": "0",
    f"{CPU}/smt/control": "on",
    tuning.THP: "always [madvise] never",
    tuning.SWAPS: "Filename Type Size Used Priority\n/dev/dm-1 partition 1000 0 -2",
    f"{CPU}/online": "0-1",
    f"{CPU}/isolated": "",
    f"{CPU}/vulnerabilities/mds": "Not affected",
    "/proc/cpuinfo": "processor\t: 0\nmicrocode\t: 0xb000040",
}


def test_every_setting_that_moves_latencies_is_read_once(tmp_path: Path) -> None:
    found = {item.name: item.value for item in settings(machine(tmp_path, FILES))}
    assert found == {
        "governor": "powersave", f"{CPU}/intel_pstate/no_turbo": "0", f"{CPU}/smt/control": "on", tuning.THP: "madvise",
        "swap on /dev/dm-1": "on", "online CPUs": "0-1", "isolated CPUs": "", "microcode": "0xb000040",
        f"{MITIGATION}mds": "Not affected",
    }  # fmt: skip


def test_cpus_with_different_governors_are_told_apart(tmp_path: Path) -> None:
    files = {**FILES, f"{CPU}/cpu1/cpufreq/scaling_governor": "performance"}
    assert settings(machine(tmp_path, files))[0].value == "cpu0 powersave, cpu1 performance"


def test_a_machine_that_shows_nothing_has_no_settings(tmp_path: Path) -> None:
    assert settings(Here(tmp_path)) == ()


def test_a_run_records_how_its_machine_was_set(night_template: Path) -> None:
    recorded = load_json(night_template / MANIFEST, Manifest).host_settings
    assert recorded is not None and recorded == settings() and run.here.settings is settings
