"""What can be seen of a machine, and done to it, without its kernel's help: the serial console and the power switch."""

from __future__ import annotations

import contextlib
import os
import re
import tty
from pathlib import Path
from typing import Protocol

from orchestrator import proc
from orchestrator.errors import CommandError, UserError
from orchestrator.lab.types import LabHost

# The kernel's last words: after these lines nothing more will come of a trial (kernel/panic.c: panic()).
PANIC = re.compile(rb"Kernel panic - not syncing|---\[ end Kernel panic")
SEARCH_BYTES = 1 << 16


class Outside(Protocol):
    """The commands of the lab file for one machine. None of these raises if a command fails: they are last resorts."""

    @property
    def watching(self) -> bool:
        """Whether the console is being written down; only then can a panic be seen, or a key be sent."""

    def watch(self, log: Path) -> None:
        """Let the serial console be written to ``log``, from now until :meth:`unwatch`."""

    def unwatch(self) -> None:
        """Stop it."""

    def panicked(self) -> bool:
        """Whether the console has shown a panic since :meth:`watch`."""

    def sysrq(self, keys: str) -> str:
        """Send SysRq keys over the console, one after the other; why that cannot be, or nothing."""

    def power_cycle(self) -> str:
        """Run the power command; why that failed, or nothing."""


class RealOutside:
    """The commands, run on this machine."""

    def __init__(self, host: LabHost, power_log: Path) -> None:
        self._host = host
        self._power_log = power_log
        self._stack = contextlib.ExitStack()
        self._child: proc.Child | None = None
        self._keyboard = -1
        self._log: Path | None = None
        self._seen = 0

    @property
    def watching(self) -> bool:
        """See the protocol."""
        return self._log is not None

    def watch(self, log: Path) -> None:
        """See the protocol. A console command that ends (a server that restarts) is started again when it is needed."""
        self.unwatch()
        self._log = log
        self._seen = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self._start()

    def unwatch(self) -> None:
        """See the protocol."""
        self._stack.close()
        self._child = None
        self._log = None

    def panicked(self) -> bool:
        """See the protocol."""
        if self._log is None or not self._host.console:
            return False
        if self._child is not None and self._child.poll() is not None:
            self._start()
        with self._log.open("rb") as stream:
            stream.seek(max(0, self._seen - 200))
            text = stream.read()
            self._seen = stream.tell() if not PANIC.search(text) else self._seen
        return PANIC.search(text) is not None

    def sysrq(self, keys: str) -> str:
        """See the protocol. BREAK, then a key (Documentation/admin-guide/sysrq.rst, serial consoles)."""
        if self._host.console_break is None:
            return "no console_break in the lab file"
        if self._child is None or self._child.poll() is not None:
            return "the console command does not run"
        try:
            for key in keys:
                # latin-1: one character of the lab file is one byte, whatever it is.
                os.write(self._keyboard, f"{self._host.console_break}{key}".encode("latin-1", "replace"))
        except OSError as error:
            return f"the console command takes no input: {error.strerror}"
        return ""

    def power_cycle(self) -> str:
        """See the protocol."""
        if not self._host.power:
            return "no power command in the lab file"
        self._power_log.parent.mkdir(parents=True, exist_ok=True)
        program, log = self._host.power[0], self._power_log
        try:
            # A password of a power switch may stand in its words, and errors end up in reports.
            proc.run(self._host.power, log=log, deadline_s=self._host.deadlines.power_s, shown=program)
        except (CommandError, UserError, OSError) as error:
            return f"{error} (log: {log})"
        return ""

    def _start(self) -> None:
        """The console command on a terminal of its own: many of them insist on one, and end when their input does."""
        self._stack.close()
        if not self._host.console or self._log is None:
            return
        self._keyboard, terminal = os.openpty()
        self._stack.callback(os.close, self._keyboard)
        try:
            tty.setraw(terminal)  # No echo, no line editing, and Ctrl-C is a character.
            self._child = self._stack.enter_context(proc.start(self._host.console, log=self._log, stdin=terminal))
        except OSError as error:
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(f"[orch: the console command cannot be started: {error.strerror}]\n")
            self._child = None
        finally:
            os.close(terminal)
