"""Lab hosts: PCs made by QEMU, each with a disk of its own (``labroot.py``), reached by SSH through a ``labproxy``.

Everything is emulated (TCG, with SVM), so the whole path of ``target: ssh`` runs where there is no hardware to spare.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import labctl
import pytest
import yaml
from labproxy import Proxy
from labroot import LabImage

from orchestrator import proc
from orchestrator.image import build_guests
from orchestrator.lab import LabHost, journal, load
from orchestrator.manifest import QEMU
from orchestrator.target.qemu import TCG_LACKS, measure_tsc_khz

ROOT = Path(__file__).parents[2]
CONTROL = Path(labctl.__file__)
FRAGMENT = ROOT / "configs/kernel/lab.config"
CONSOLE_LOG = "console.log"
KEY = "id_ed25519"
SECTOR, GAP_SECTORS = 512, 2048
ACTIVE, LINUX = 0x80, 0x83  # in a partition table: what the firmware would boot, and what is in it
GRUB_DEFAULTS = """\
GRUB_TIMEOUT=0
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
# The initramfs knows no UUIDs.
GRUB_DISABLE_LINUX_UUID=true
GRUB_CMDLINE_LINUX="{words}"
"""
INSTALL_GRUB = (
    "cat >/etc/default/grub && grub-install --target=i386-pc /dev/vda && grub-mkconfig -o /boot/grub/grub.cfg && sync"
)
# Whatever runs on lab hosts.
MARKS = (pytest.mark.lab, pytest.mark.kernel, pytest.mark.qemu, pytest.mark.network)
BOOT_S = 240.0  # from power-on until sshd answers; 10 s on an idle machine


@dataclass
class LabVm:
    """A lab host in ``folder``: its disk, sockets, keys and console log. ``qemu`` is set while it runs."""

    name: str
    folder: Path
    image: LabImage
    proxy: Proxy
    port: int  # past the proxy: for looking at the machine while its cable is cut

    def power_cycle(self) -> None:
        """As by the lab file's power command."""
        labctl.power(self.folder)

    def switch_off(self) -> None:
        """Let it switch itself off, and wait until it is."""
        self.ssh("(sleep 0.5; poweroff) >/dev/null 2>&1 &")
        end = time.monotonic() + BOOT_S
        while self.qmp("query-status")["status"] != "shutdown":
            assert time.monotonic() < end, self.console()[-3000:]
            time.sleep(0.2)

    def qmp(self, execute: str, **arguments: Any) -> Any:
        """One QMP command."""
        return labctl.monitor(self.folder, {"execute": execute, "arguments": arguments})[0]

    def console(self) -> str:
        """All that came over the serial line since the machine was made."""
        return (self.folder / CONSOLE_LOG).read_text(encoding="utf-8", errors="replace")

    def await_console(self, pattern: str, *, start: int = 0, deadline_s: float = BOOT_S) -> re.Match[str]:
        """Wait until the console has shown ``pattern`` behind its character ``start``; AssertionError past deadline."""
        end = time.monotonic() + deadline_s
        while (found := re.compile(pattern, re.MULTILINE).search(self.console(), start)) is None:
            assert time.monotonic() < end, f"{self.name}: no {pattern!r} on the console:\n{self.console()[-3000:]}"
            time.sleep(0.2)
        return found

    def ssh(
        self,
        command: str,
        *,
        deadline_s: float = 60.0,
        accept: tuple[int, ...] = (0,),
        stdin: bytes = b"",
        connect_s: int = 30,
    ) -> str:
        """Run a shell command on the host, by OpenSSH's own client, past the proxy; its output."""
        argv = [*self._client("ssh", "-p", connect_s), "root@127.0.0.1", command]
        return proc.run(argv, deadline_s=deadline_s, accept=accept, stdin=stdin).stdout

    def copy(self, source: Path, to: str) -> None:
        """Copy a file to the host."""
        proc.run([*self._client("scp", "-P"), str(source), f"root@127.0.0.1:{to}"], deadline_s=300)

    def fetch(self, path: str, to: Path) -> None:
        """Copy a file from the host."""
        proc.run([*self._client("scp", "-P"), f"root@127.0.0.1:{path}", str(to)], deadline_s=300)

    def sysrq(self, keys: str) -> None:
        """Type SysRq keys on the serial console, by the lab file's console command."""
        typed = "".join(f"{labctl.BREAK.decode()}{key}" for key in keys)
        argv = [sys.executable, str(CONTROL), "console", str(self.folder)]
        start = len(self.console())
        with proc.start(argv, stdin=typed.encode(), log=self.folder / "typed.log"):
            self.await_console(r"sysrq: Resetting", start=start)

    def await_ssh(self, release: str = "", deadline_s: float = BOOT_S) -> str:
        """Wait until sshd answers (under kernel ``release``, if given); ``uname -r``."""
        end = time.monotonic() + deadline_s
        found = ""
        while time.monotonic() < end:
            with contextlib.suppress(Exception):
                found = self.ssh("uname -r", deadline_s=30, connect_s=8).strip()
            if found and release in ("", found):
                return found
            time.sleep(0.5)
        raise AssertionError(f"{self.name}: no {release or 'answer'} by SSH ({found}):\n{self.console()[-3000:]}")

    def await_first_boot(self) -> None:
        """Wait for the known-good kernel after power-on. On a machine of many other loads QEMU's PCI bus was once seen
        to stand still in the middle of its probing: then off and on again."""
        try:
            self.await_ssh(self.image.release, BOOT_S / 2)
        except AssertionError:
            self.power_cycle()
            self.await_ssh(self.image.release)

    def restore(self) -> None:
        """Let the known-good kernel run, one that refuses no kexec; restart the machine if it does not."""
        with contextlib.suppress(Exception):
            seen = self.ssh("uname -r; cat /proc/sys/kernel/kexec_load_disabled", deadline_s=30)
            if seen.split() == [self.image.release, "0"]:
                return
        self.power_cycle()
        self.await_ssh(self.image.release)

    def described(self) -> LabHost:
        """This host as the tool sees it."""
        with tempfile.TemporaryDirectory() as folder:
            return load(lab_file(Path(folder), (self, {}))).hosts[0]

    def entry(self, **replaced: object) -> dict[str, object]:
        """This host in a lab file."""
        control = [sys.executable, str(CONTROL)]
        return {
            "address": "127.0.0.1",
            "port": self.proxy.port,
            "console": [*control, "console", str(self.folder)],
            "console_break": labctl.BREAK.decode(),
            "power": [*control, "power", str(self.folder)],
            **replaced,
        }

    def _client(self, program: str, port_option: str, connect_s: int = 30) -> list[str]:
        options = {
            "UserKnownHostsFile": str(self.folder.parent / "known_hosts"),
            "HostKeyAlias": self.name,
            "IdentityFile": str(self.folder.parent / KEY),
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "ConnectTimeout": str(connect_s),
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return [proc.require(program, "openssh-client"), "-F", "none", *words, port_option, str(self.port)]


def lab_file(folder: Path, *hosts: tuple[LabVm, dict[str, object]], **defaults: object) -> Path:
    """Write ``lab.yaml`` for hosts, each with what is to be replaced in its entry; the path."""
    shared: dict[str, object] = {
        "user": "root",
        "key": str(hosts[0][0].folder.parent / KEY),
        "known_hosts": str(hosts[0][0].folder.parent / "known_hosts"),
        "folder": "/var/orch",
        "min_free_mib": 32,
        "cpus": [0, 1],
        "may_change": ["thp"],
        # Two cores of this machine are all cores of two hosts, and of whatever else runs here.
        "max_load": 1.5,
        # QEMU's own network takes connections for a host that is down, and lets them wait: a short attempt costs less.
        "deadlines": {"connect_s": 8, "boot_s": 150, "return_s": 150},
    }
    entries = {vm.name: vm.entry(**replaced) for vm, replaced in hosts}
    document = {"fragments": [str(FRAGMENT)], "defaults": shared | defaults, "hosts": entries}
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@contextlib.contextmanager
def lab_hosts(image: LabImage, folder: Path, names: tuple[str, ...]) -> Iterator[tuple[LabVm, ...]]:
    """Hosts that are switched on at once, not waited for, and gone when the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    make_key(folder / KEY)
    known = []
    with contextlib.ExitStack() as stack:
        vms = []
        for name in names:
            _make_host(image, folder / name)
            if image.grub:
                _install_grub(image, folder / name)
            vm = stack.enter_context(_running(image, folder / name, () if image.grub else _direct(image, "/dev/vda")))
            public = _public_key(vm.folder)
            known += [f"[127.0.0.1]:{vm.proxy.port} {public}\n", f"{name} {public}\n"]
            vms.append(vm)
        (folder / "known_hosts").write_text("".join(known))
        yield tuple(vms)


def make_key(path: Path) -> None:
    """A new key pair without a passphrase."""
    argv = [proc.require("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-C", path.name]
    proc.run([*argv, "-f", path])


def _make_host(image: LabImage, folder: Path) -> None:
    """A host that has never been switched on: its disk and its keys in a new ``folder``."""
    folder.mkdir()
    make_key(folder / "host_key")
    _make_disk(image, folder)
    if image.grub:
        _partition(folder)


def _public_key(folder: Path) -> str:
    """A host's own, as known_hosts has it behind the name."""
    return " ".join((folder / "host_key.pub").read_text().split()[:2])


@contextlib.contextmanager
def _running(image: LabImage, folder: Path, loader: Sequence[str]) -> Iterator[LabVm]:
    argv = [proc.require(QEMU, "qemu-system-x86"), *_arguments(), *loader]
    (folder / "command.txt").write_text(proc.quote(argv) + "\n")
    with proc.start(argv, cwd=folder, log=folder / "qemu.log") as child:
        port = _forwarded_port(folder, child)
        with Proxy(port) as proxy:
            vm = LabVm(folder.name, folder, image, proxy, port)
            yield vm
            # What the tool keeps of a machine here; nobody will see this one again.
            shutil.rmtree(journal.folder(vm.described()), ignore_errors=True)


def _make_disk(image: LabImage, folder: Path) -> None:
    """A copy of the image with the host's own name and keys in it, by debugfs: nothing has to be mounted."""
    disk = folder / "disk.img"
    proc.run(["cp", "--sparse=always", "--reflink=auto", image.disk, disk])
    shutil.copy(folder.parent / f"{KEY}.pub", folder / "authorized_keys")
    (folder / "hostname").write_text(f"{folder.name}\n")
    commands = []
    for name, place, mode in (
        ("authorized_keys", "/root/.ssh/authorized_keys", "600"),
        ("host_key", "/etc/ssh/ssh_host_ed25519_key", "600"),
        ("host_key.pub", "/etc/ssh/ssh_host_ed25519_key.pub", "644"),
        ("hostname", "/etc/hostname", "644"),
    ):
        commands += [f"write {name} {place}", f"set_inode_field {place} mode 0100{mode}"]
        commands += [f"set_inode_field {place} uid 0", f"set_inode_field {place} gid 0"]
    (folder / "debugfs.txt").write_text("".join(f"{command}\n" for command in commands))
    argv = [proc.require("debugfs", "e2fsprogs"), "-w", "-f", "debugfs.txt", disk.name]
    said = proc.run(argv, cwd=folder).stdout
    assert "not found" not in said and "denied" not in said, said


def _partition(folder: Path) -> None:
    """Put the file system into the only partition of a disk, so that there is room for a boot loader before it."""
    disk, root = folder / "disk.img", folder / "root.img"
    disk.rename(root)
    sectors = root.stat().st_size // SECTOR
    entry = struct.pack("<B3xB3xII", ACTIVE, LINUX, GAP_SECTORS, sectors)
    disk.write_bytes(bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa")
    argv = ["dd", f"if={root}", f"of={disk}", f"bs={GAP_SECTORS * SECTOR}", "seek=1", "conv=sparse,notrunc"]
    proc.run(argv, deadline_s=300)
    os.truncate(disk, (GAP_SECTORS + sectors) * SECTOR)
    root.unlink()


def _install_grub(image: LabImage, folder: Path) -> None:
    """Switched on once with the known-good kernel given by hand, the host installs its boot loader itself."""
    (folder.parent / "known_hosts").write_text(f"{folder.name} {_public_key(folder)}\n")
    with _running(image, folder, _direct(image, "/dev/vda1")) as vm:
        vm.await_first_boot()
        vm.ssh(INSTALL_GRUB, stdin=GRUB_DEFAULTS.format(words=_known_good_words()).encode(), deadline_s=BOOT_S)
        vm.switch_off()


def _direct(image: LabImage, root: str) -> list[str]:
    """QEMU is the boot loader: whatever restarts the machine restarts the known-good kernel."""
    line = f"root={root} {_known_good_words()}"
    return ["-kernel", str(image.vmlinuz), "-initrd", str(image.initrd), "-append", line]


def _known_good_words() -> str:
    """The known-good kernel's command line, but for its root."""
    return f"console=ttyS0 rw net.ifnames=0 panic=1 {_clock()}"


def _arguments() -> list[str]:
    """QEMU's arguments; it runs in the host's folder."""
    log = f"logfile={CONSOLE_LOG},logappend=on"
    cpu = ",".join(["EPYC-v1", "svm=on", "npt=on", *(f"{feature}=off" for feature in TCG_LACKS)])
    return [
        "-nodefaults", "-no-user-config", "-display", "none",
        # A host that switches itself off stays off until the power command, as a machine does.
        "-no-shutdown",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2", "-m", "1024M",
        "-chardev", f"socket,id={labctl.CHARDEV},path={labctl.CONSOLE},server=on,wait=off,{log}",
        "-serial", f"chardev:{labctl.CHARDEV}",
        "-chardev", f"socket,id=monitor,path={labctl.MONITOR},server=on,wait=off",
        "-mon", "chardev=monitor,mode=control",
        # cache=unsafe: it need not survive this machine's crash, only its own.
        "-drive", "if=none,id=disk,file=disk.img,format=raw,cache=unsafe", "-device", "virtio-blk-pci,drive=disk",
        # No way out to anywhere; port 0: any free one.
        "-netdev", "user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip


@functools.cache
def _clock() -> str:
    """Words for the kernels' command lines, also of those under test, which get theirs from the machine's own.

    On a loaded machine the kernel finds the emulated TSC unstable by comparing it with other emulated clocks. KVM then
    gives a vCPU that changes CPUs another offset, and a guest's time stamps cannot be told from the host's any more.
    """
    return f"tsc=reliable tsc_early_khz={measure_tsc_khz(build_guests(print))}"


def _forwarded_port(folder: Path, child: proc.Child) -> int:
    end = time.monotonic() + 60
    while True:
        assert child.poll() is None and time.monotonic() < end, (folder / "qemu.log").read_text()
        with contextlib.suppress(OSError):
            command = {"execute": "human-monitor-command", "arguments": {"command-line": "info usernet"}}
            (said,) = labctl.monitor(folder, command)
            break
        time.sleep(0.1)
    found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s", said)
    assert found is not None, said
    return int(found[1])
