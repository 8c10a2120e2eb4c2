"""What of this machine decides its timing, by the reader that asks the machines of a lab; nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.lab import tuning
from orchestrator.lab.journal import Setting
from orchestrator.lab.remote import Files, NoSuchFile
from orchestrator.manifest import MITIGATION, SWAP, HostSetting

CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
# Documentation/ABI/testing/sysfs-devices-system-cpu: a file for each vulnerability that the kernel knows of.
VULNERABILITIES = f"{tuning.CPU}/vulnerabilities"
SEEN = {
    "online CPUs": f"{tuning.CPU}/online",
    "isolated CPUs": f"{tuning.CPU}/isolated",
    "clocksource": CLOCKSOURCE,
}


@dataclass(frozen=True)
class Here:
    """This machine's files; ``root`` is where a test has its own."""

    root: Path = Path("/")

    def read(self, path: str) -> bytes:
        try:
            return (self.root / path.lstrip("/")).read_bytes()
        except OSError as error:
            raise NoSuchFile(path) from error

    def names(self, folder: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(item.name for item in (self.root / folder.lstrip("/")).iterdir()))
        except OSError:
            return ()


def settings(files: Files | None = None) -> tuple[HostSetting, ...]:
    """Governor, turbo, SMT, huge pages, KSM, NUMA balancing, swap; CPUs, clock, microcode, mitigations.

    What the machine does not have, or does not show, is not among them.
    """
    files = files or Here()
    found = tuning.read_settings(files)
    others = (
        HostSetting(f"{SWAP}{setting.path}" if setting.knob == "swap" else setting.path, setting.value)
        for setting in found
        if setting.knob != "governor"
    )
    return (*_governor(found), *others, *_seen(files))


def _governor(found: Sequence[Setting]) -> Iterator[HostSetting]:
    """One value for all CPUs, or each CPU with its own."""
    each = {setting.path.split("/")[5]: setting.value for setting in found if setting.knob == "governor"}
    if each:
        same = len(set(each.values())) == 1
        words = set(each.values()) if same else [f"{cpu} {value}" for cpu, value in each.items()]
        yield HostSetting("governor", ", ".join(words))


def _seen(files: Files) -> Iterator[HostSetting]:
    for name, path in SEEN.items():
        if (value := _text(files, path)) is not None:
            yield HostSetting(name, value)
    microcode = re.search(r"^microcode\s*:\s*(\S+)$", _text(files, "/proc/cpuinfo") or "", re.MULTILINE)
    if microcode:
        yield HostSetting("microcode", microcode.group(1))
    for name in files.names(VULNERABILITIES):
        if (value := _text(files, f"{VULNERABILITIES}/{name}")) is not None:
            yield HostSetting(f"{MITIGATION}{name}", value)


def _text(files: Files, path: str) -> str | None:
    try:
        return files.read(path).decode("utf-8", "replace").strip()
    except NoSuchFile:
        return None
