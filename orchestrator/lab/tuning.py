"""What of a machine decides its timing: always recorded, changed only where the lab file allows, always put back.

Where each setting lives (Linux 5.10; Documentation/admin-guide/pm/cpufreq.rst, .../mm/transhuge.rst, .../mm/ksm.rst,
Documentation/ABI/testing/sysfs-devices-system-cpu, Documentation/admin-guide/sysctl/kernel.rst):
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.lab.journal import Setting
from orchestrator.lab.link import Link
from orchestrator.lab.remote import Files, NoSuchFile, Transport
from orchestrator.lab.types import Knob

CPU = "/sys/devices/system/cpu"
GOVERNOR = f"{CPU}/{{}}/cpufreq/scaling_governor"
# intel_pstate inverts the sense of the generic switch.
NO_TURBO, BOOST = f"{CPU}/intel_pstate/no_turbo", f"{CPU}/cpufreq/boost"
SMT = f"{CPU}/smt/control"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
KSM = "/sys/kernel/mm/ksm/run"
NUMA_BALANCING = "/proc/sys/kernel/numa_balancing"
SWAPS = "/proc/swaps"
SMT_SWITCHABLE = ("on", "off")  # "notsupported", "notimplemented" and "forceoff" cannot be written over.

# What a trial wants. THP as the fragments of the kernels under test have it: huge pages only where they are asked for.
WANTED = {
    GOVERNOR: "performance", NO_TURBO: "1", BOOST: "0", SMT: "off", THP: "madvise", KSM: "0", NUMA_BALANCING: "0",
}  # fmt: skip
SINGLE: tuple[tuple[Knob, str], ...] = (
    ("turbo", NO_TURBO), ("turbo", BOOST), ("smt", SMT), ("thp", THP), ("ksm", KSM),
    ("numa_balancing", NUMA_BALANCING),
)  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """What a machine was like when a trial began. A knob that it does not have is not among ``settings``.

    ``load`` is CPUs' worth of work over the last seconds, ``load_average`` the kernel's of the last minute.
    """

    settings: tuple[Setting, ...]
    online_cpus: str
    isolated_cpus: str
    load: float
    load_average: float
    swap_kib: int
    clocksource: str
    command_line: str


def read_settings(files: Files) -> tuple[Setting, ...]:
    """Every knob as it stands, governors first: without SMT, half of the CPUs have none that could be set."""
    found: list[Setting] = []
    for cpu in files.names(CPU):
        path = GOVERNOR.format(cpu)
        if re.fullmatch(r"cpu\d+", cpu) and (governor := _chosen(files, path)) is not None:
            found.append(Setting("governor", path, governor))
    for knob, path in SINGLE:
        if (value := _chosen(files, path)) is not None:
            found.append(Setting(knob, path, value))
    return (*found, *(Setting("swap", device, "on") for device, _ in swaps(files)))


def read_conditions(transport: Transport, load: float) -> Conditions:
    """Everything that is recorded of a machine when a trial begins."""
    return Conditions(
        settings=read_settings(transport),
        online_cpus=_text(transport, f"{CPU}/online"),
        isolated_cpus=_text(transport, f"{CPU}/isolated"),
        load=round(load, 3),
        load_average=float((_text(transport, "/proc/loadavg").split() or ["0"])[0]),
        swap_kib=sum(size for _, size in swaps(transport)),
        clocksource=_text(transport, "/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        command_line=_text(transport, "/proc/cmdline"),
    )


def plan(now: Sequence[Setting], may_change: Sequence[Knob], needs_swap: bool) -> tuple[Setting, ...]:
    """What to set, of what may be changed and is not so already."""
    return tuple(
        wanted
        for setting in now
        if setting.knob in may_change
        and not (setting.knob == "swap" and needs_swap)
        and not (setting.knob == "smt" and setting.value not in SMT_SWITCHABLE)
        and (wanted := Setting(setting.knob, setting.path, _wanted(setting))) != setting
    )


def lasting(now: Sequence[Setting], may_change: Sequence[Knob]) -> tuple[Setting, ...]:
    """Of the known-good kernel's settings those that a trial may cost, since it restarts the machine.

    Swap is not among them: what a boot turns on may have another name there.
    """
    switchable = (setting for setting in now if setting.knob != "smt" or setting.value in SMT_SWITCHABLE)
    return tuple(setting for setting in switchable if setting.knob in may_change and setting.knob != "swap")


def undo(now: Sequence[Setting], before: Sequence[Setting]) -> tuple[Setting, ...]:
    """What to set so that the machine is as ``before`` again: those that differ, and SMT first, which brings CPUs."""
    current = {setting.path: setting.value for setting in now}
    changed = [setting for setting in before if current.get(setting.path) != setting.value]
    return tuple(sorted(changed, key=lambda setting: setting.knob != "smt"))


def apply(link: Link, agent: str, setting: Setting) -> str:
    """Write one setting; returns why the machine refused, or nothing."""
    switch = "swapon" if setting.value == "on" else "swapoff"
    words = (switch, setting.path) if setting.knob == "swap" else ("set", setting.path, setting.value)
    reply = link.run((agent, *words), root=True)
    if reply.returncode == 0 or (setting.knob == "swap" and _swap_is(link, setting)):
        return ""
    return f"cannot set {setting.knob} to {setting.value}: {reply.said}"


def _swap_is(link: Link, setting: Setting) -> bool:
    """Whether swap is as wanted after all: neither switch can be thrown twice, and a reply may have got lost."""
    used = link.insist(swaps, link.host.deadlines.answer_s)
    return (setting.path in (device for device, _ in used)) == (setting.value == "on")


def is_known(setting: Setting) -> bool:
    """Whether a setting that was read from a journal is one of ours: nothing else is ever written as root."""
    if setting.knob == "swap":
        return setting.value == "on" and re.fullmatch(r"/[^\x00-\x1f]+", setting.path) is not None
    if setting.knob == "governor":
        return re.fullmatch(GOVERNOR.format(r"cpu\d+"), setting.path) is not None
    return (setting.knob, setting.path) in SINGLE


def swaps(files: Files) -> tuple[tuple[str, int], ...]:
    """Swap devices and files in use, with their size in KiB. (/proc/swaps writes blanks in names as \\040.)"""
    lines = _text(files, SWAPS).splitlines()[1:]
    fields = (line.split() for line in lines)
    return tuple((words[0].replace("\\040", " "), int(words[2])) for words in fields if len(words) >= 3)


def busy_cpus(before: str, after: str, seconds: float, ticks_per_s: int = 100) -> float:
    """CPUs' worth of work between two readings of /proc/stat: all that is neither idle nor waiting for a disk.

    ``ticks_per_s`` is USER_HZ, 100 on every architecture that KVM runs on.
    """
    return max(0.0, (_busy_ticks(after) - _busy_ticks(before)) / ticks_per_s / seconds)


def _busy_ticks(stat: str) -> int:
    words = stat.partition("\n")[0].split()[1:9]  # user nice system idle iowait irq softirq steal
    return sum(int(word) for place, word in enumerate(words) if place not in (3, 4))


def _wanted(setting: Setting) -> str:
    if setting.knob == "swap":
        return "off"
    return WANTED[GOVERNOR if setting.knob == "governor" else setting.path]


def _chosen(files: Files, path: str) -> str | None:
    """A setting's value; of "always [madvise] never" the one in brackets. None if the machine does not have it."""
    try:
        text = files.read(path).decode("utf-8", "replace").strip()
    except NoSuchFile:
        return None
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen.group(1) if chosen else text


def _text(files: Files, path: str) -> str:
    try:
        return files.read(path).decode("utf-8", "replace").strip()
    except NoSuchFile:
        return ""
