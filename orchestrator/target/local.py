"""The target ``local``: the kernel that is already running, through its own /dev/kvm. Nothing is built or booted."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator import kvmdev, proc
from orchestrator.errors import TargetError
from orchestrator.image import Guests
from orchestrator.target.target import COMMAND, COMMAND_NOTE, CONSOLE, RECORDING, STATUS, Ending, Evidence, Job

STDERR = "stderr.log"


@dataclass(frozen=True)
class LocalTarget:
    """This machine. The console is what the kernel logged during the trial, if we may read it."""

    guests: Guests

    def run(self, job: Job, folder: Path) -> Evidence:
        """See :class:`~orchestrator.target.target.Target`. The status file is written as init would write it."""
        check_tdp(job.tdp)
        argv = [str(self.guests.program(job.program)), *job.arguments, "--out", RECORDING]
        (folder / COMMAND).write_text(f"{COMMAND_NOTE}{proc.quote(argv)}\n")
        log_start = _kernel_log()
        started = time.monotonic()
        ending: Ending = "ended"
        with proc.start(argv, cwd=folder, log=folder / STDERR) as child:
            code = child.wait(min(job.deadline_s, job.guest_deadline_s))
            if code is None:
                ending = "wall-deadline"
                code = child.stop(grace_s=0.0)
        seconds = time.monotonic() - started
        lines = [f"stderr {line}" for line in (folder / STDERR).read_text("utf-8", "replace").splitlines()]
        lines.append(f"signal {-code}" if code < 0 else f"exit {code}")
        (folder / STATUS).write_text("".join(f"{line}\n" for line in ["pid1 0", *lines, "end 0"]))
        (folder / CONSOLE).write_text(_since(log_start, _kernel_log()))
        return Evidence(ending, 0 if ending == "ended" else code, 0.0, seconds)


def check_local() -> None:
    """Raise :class:`TargetError` with the reason if the running kernel cannot host the flat guest."""
    device = kvmdev.probe()
    if not device.runs_flat_guest:
        raise TargetError(
            f"target: local cannot work here: {device.error or device.flat_guest_error}", hint="orch doctor"
        )


def running_tdp() -> bool:
    """Whether the running KVM uses NPT/EPT; a vendor module with neither switch (kvm_pvm) can only shadow."""
    for switch in ("kvm_amd/parameters/npt", "kvm_intel/parameters/ept"):
        with contextlib.suppress(OSError):
            return (Path("/sys/module") / switch).read_text("ascii").strip() in ("Y", "1")
    return False


def check_tdp(wanted: bool) -> None:
    """Raise :class:`TargetError` if a cell wants the other paging mode: we do not reload the machine's modules."""
    if running_tdp() != wanted:
        has, wants = ("TDP", "shadow paging") if not wanted else ("shadow paging", "TDP")
        raise TargetError(
            f"the running KVM uses {has} and the cell asks for {wants}",
            hint=f"set guest.tdp: {'false' if wanted else 'true'} in the config",
        )


def _kernel_log() -> str:
    """All of dmesg, or nothing where the kernel does not show it to us (dmesg_restrict)."""
    if shutil.which("dmesg") is None:
        return ""
    done = proc.run(["dmesg"], deadline_s=30, accept=(0, 1))
    return done.stdout if done.returncode == 0 else ""


def _since(before: str, after: str) -> str:
    return after[len(before) :] if after.startswith(before) else after
