"""Lab hosts: PCs made by QEMU, each with a disk of its own (``labroot.py``), reached by SSH through a ``labproxy``.

Everything is emulated (TCG, with SVM), so the whole path of ``target: ssh`` runs where there is no hardware to spare.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import labctl
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
            vm = stack.enter_context(_running(image, folder / name))
            public = " ".join((vm.folder / "host_key.pub").read_text().split()[:2])
            known += [f"[127.0.0.1]:{vm.proxy.port} {public}\n", f"{name} {public}\n"]
            vms.append(vm)
        (folder / "known_hosts").write_text("".join(known))
        yield tuple(vms)


def make_key(path: Path) -> None:
    """A new key pair without a passphrase."""
    argv = [proc.require("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-C", path.name]
    proc.run([*argv, "-f", path])


@contextlib.contextmanager
def _running(image: LabImage, folder: Path) -> Iterator[LabVm]:
    folder.mkdir()
    make_key(folder / "host_key")
    _make_disk(image, folder)
    argv = [proc.require(QEMU, "qemu-system-x86"), *_arguments(image)]
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


def _arguments(image: LabImage) -> list[str]:
    """QEMU's arguments; it runs in the host's folder."""
    cpu = ",".join(["EPYC-v1", "svm=on", "npt=on", *(f"{feature}=off" for feature in TCG_LACKS)])
    return [
        "-nodefaults", "-no-user-config", "-display", "none",
        # A host that switches itself off stays off until the power command, as a machine does.
        "-no-shutdown",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2", "-m", "1024M",
        # The boot loader: whatever restarts the machine restarts the known-good kernel.
        "-kernel", str(image.vmlinuz), "-initrd", str(image.initrd),
        "-append", f"console=ttyS0 root=/dev/vda rw net.ifnames=0 panic=1 {_clock()}",
        "-chardev", f"socket,id={labctl.CHARDEV},path={labctl.CONSOLE},server=on,wait=off,logfile={CONSOLE_LOG}",
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
