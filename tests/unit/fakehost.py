"""A lab machine that is simulated: files, kernels, boots, a console, programs, and time that passes at once.

It answers the calls of ``lab/remote.py`` as a Debian machine with our agent does, and can be made to fail at each of
them (``faults``), to die with a program (``on_program``), or to stay away.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.lab.journal import KernelId
from orchestrator.lab.machine import Machine
from orchestrator.lab.remote import CannotWrite, Cut, NoSuchFile, Reply
from orchestrator.lab.types import Deadlines, LabHost

GOOD = KernelId("6.1.0-18-amd64", "#1 SMP Debian", "aa" * 20)
HOME = "/root"
FOLDER = f"{HOME}/.cache/orch-lab"
BOOT_S = 20.0
CALL_S = 0.01  # Each call takes a moment, so that no loop is without end.
DISK_BYTES = 8 << 30


class World:
    """One clock for all machines of a test, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        end = self.now + max(seconds, 0.0)
        while self._events and self._events[0][0] <= end:
            at, _, event = heapq.heappop(self._events)
            self.now = max(self.now, at)
            event()
        self.now = end

    def utc(self) -> str:
        return f"2021-01-25T{int(self.now)}"

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._count), event))


@dataclass
class Program:
    """What the program under test does: it ends after ``seconds`` with these lines and this recording."""

    seconds: float = 30.0
    status: str = "start 1\nexit 0\nend 2\n"
    kernel_log: str = "[    0.000000] Linux version\n"
    recording: bytes = b"samples"


def notes(build_id: str) -> bytes:
    """/sys/kernel/notes of a kernel with this build id."""
    return struct.pack("<III", 4, len(build_id) // 2, 3) + b"GNU\0" + bytes.fromhex(build_id) if build_id else b""


class FakeHost:
    """The machine. ``kernels`` maps the content of a kernel file to what it is once it runs."""

    def __init__(self, world: World, kernels: dict[bytes, KernelId] | None = None, boot: str = "kexec") -> None:
        self.world = world
        self.kernels = kernels or {}
        self.boot = boot
        self.files: dict[str, bytes] = {}
        self.folders = {"/run/systemd/system", f"{HOME}"}
        self.calls: list[tuple[str, ...]] = []
        self.faults: list[Callable[[str, tuple[str, ...]], None]] = []
        self.on_program: Callable[[], None] = lambda: None
        self.on_boot: Callable[[KernelId], KernelId | None] = lambda kernel: kernel  # None: it never comes up
        self.program = Program()
        self.up = True
        self.epoch = 0
        self.kernel = GOOD
        self.history: list[KernelId] = [GOOD]
        self.loaded: bytes | None = None
        self.command_line = "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet console=ttyS0,115200"
        self.own_command_line = self.command_line
        self.next_command_line = ""
        self.free_bytes = DISK_BYTES
        self.boot_free_bytes = DISK_BYTES
        self.settings = {
            "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
            "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave",
            "/sys/devices/system/cpu/cpufreq/boost": "1",
            "/sys/devices/system/cpu/smt/control": "on",
            "/sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never",
            "/sys/kernel/mm/ksm/run": "1",
            "/proc/sys/kernel/numa_balancing": "1",
        }
        self.defaults = dict(self.settings)
        self.kernel_defaults: dict[KernelId, dict[str, str]] = {}  # of one kernel, besides
        self.swap = ["/dev/vda2"]
        self.busy_ticks = 0
        self.busy_rate = 0.0  # CPUs' worth of other work
        self.tdp = True
        self.pstore: dict[str, str] = {}
        self.sysrq_works = True
        self.reboot_works = True

    # --- the machine itself -------------------------------------------------------------------------------------------

    @property
    def boot_id(self) -> str:
        return f"boot-{self.epoch}"

    def restart(self, into: KernelId, seconds: float = BOOT_S) -> None:
        """Go down now, and come up in a kernel: settings are those of a fresh boot then."""
        self.up = False
        self.epoch += 1
        epoch, chosen = self.epoch, self.on_boot(into)
        if chosen is None:
            return

        def come_up() -> None:
            if self.epoch == epoch:
                self.up, self.kernel, self.loaded = True, chosen, None
                self.command_line = self.next_command_line if into is not GOOD else self.own_command_line
                self.settings = self.defaults | self.kernel_defaults.get(chosen, {})
                self.swap = ["/dev/vda2"]
                self.history.append(chosen)

        self.world.later(seconds, come_up)

    def die(self) -> None:
        """Hang: nothing answers any more, until somebody restarts it."""
        self.up = False
        self.epoch += 1

    # --- its answers --------------------------------------------------------------------------------------------------

    def connect(self) -> FakeTransport:
        self.world.sleep(CALL_S)
        self.check("connect", ())
        if not self.up:
            raise Cut("connection refused")
        return FakeTransport(self, self.epoch)

    def check(self, call: str, words: tuple[str, ...]) -> None:
        """Let the faults of the test have their say."""
        for fault in list(self.faults):
            fault(call, words)

    def read(self, path: str) -> bytes:
        special: dict[str, Callable[[], str]] = {
            "/proc/sys/kernel/osrelease": lambda: self.kernel.release,
            "/proc/sys/kernel/version": lambda: self.kernel.version,
            "/proc/sys/kernel/random/boot_id": lambda: self.boot_id,
            "/proc/cmdline": lambda: self.command_line,
            "/proc/loadavg": lambda: "0.10 0.20 0.30 1/100 999",
            "/proc/stat": self._stat,
            "/proc/swaps": lambda: (
                "Filename Type Size Used Priority\n"
                + "".join(f"{device} partition 1048572 0 -2\n" for device in self.swap)
            ),
            "/sys/kernel/kexec_loaded": lambda: str(int(self.loaded is not None)),
            "/sys/devices/system/cpu/online": lambda: "0-1",
            "/sys/module/kvm_amd/parameters/npt": lambda: "Y" if self.tdp else "N",
            **{name: (lambda name=name: self.settings[name]) for name in self.settings},  # type: ignore[misc]
        }
        if path == "/sys/kernel/notes":
            return notes(self.kernel.build_id)
        if path in special:
            return f"{special[path]()}\n".encode()
        if path not in self.files:
            raise NoSuchFile(path)
        return self.files[path]

    def _stat(self) -> str:
        ticks = int(self.world.now * 100 * self.busy_rate)
        return f"cpu {ticks} 0 0 {int(self.world.now * 200)} 0 0 0 0 0 0"

    def write(self, path: str, data: bytes) -> None:
        if self.free_bytes < len(data):
            raise CannotWrite(f"cannot write {path}: Failure")
        if path.rpartition("/")[0] not in self.folders:
            raise CannotWrite(f"cannot write {path}: No such file")
        self.files[path] = data

    def execute(self, argv: tuple[str, ...]) -> Reply:
        """A command, by its name; what begins with our folder is the agent."""
        self.calls.append(argv)
        name = "agent" if argv[0].startswith(f"{FOLDER}/files/") else argv[0].replace("-", "_")
        handler: Callable[..., Reply] | None = getattr(self, f"do_{name}", None)
        return handler(*argv[1:]) if handler is not None else Reply(127, "", f"{argv[0]}: command not found")

    def do_mkdir(self, *words: str) -> Reply:
        for path in (word for word in words if word.startswith("/")):
            parts = path.split("/")
            self.folders |= {"/".join(parts[: count + 1]) for count in range(1, len(parts))}
        return OK

    def do_chmod(self, *words: str) -> Reply:
        return OK

    def do_sync(self) -> Reply:
        return OK

    def do_mv(self, *words: str) -> Reply:
        source, to = words[-2:]
        if not any(f"{path}/".startswith(f"{source}/") for path in self.files):
            return Reply(1, "", f"mv: cannot stat '{source}': No such file or directory")
        self.files = {
            to + path[len(source) :] if f"{path}/".startswith(f"{source}/") else path: data
            for path, data in self.files.items()
        }
        return OK

    do_install = do_cp = lambda self, *words: self._copy(words[-2], words[-1])

    def do_ln(self, *words: str) -> Reply:
        if words[-1] in self.files and "-f" not in words:
            return Reply(1, "", f"ln: failed to create hard link '{words[-1]}': File exists")
        return self._copy(words[-2], words[-1])

    def _copy(self, source: str, to: str) -> Reply:
        self.files[to] = self.files[source]
        return OK

    def do_rm(self, *words: str) -> Reply:
        for gone in words[2:]:
            self.files = {path: data for path, data in self.files.items() if f"{path}/".startswith(f"{gone}/") is False}
            self.folders = {path for path in self.folders if not f"{path}/".startswith(f"{gone}/")}
        return OK

    def do_sha256sum(self, _: str, path: str) -> Reply:
        if path not in self.files:
            return Reply(1, "", f"sha256sum: {path}: No such file or directory")
        return Reply(0, f"{hashlib.sha256(self.files[path]).hexdigest()}  {path}\n", "")

    def do_df(self, *words: str) -> Reply:
        free = self.boot_free_bytes if words[-1].startswith("/boot") else self.free_bytes
        return Reply(0, f"Filesystem 1024-blocks Used Available\n/dev/vda1 0 0 {free // 1024} 0% /\n", "")

    def do_find(self, *words: str) -> Reply:
        return Reply(0, "".join(f"{name}\n" for name in self.pstore), "")

    def do_cat(self, _: str, *names: str) -> Reply:
        return Reply(0, "".join(self.pstore[name] for name in names), "")

    def do_kexec(self, *words: str) -> Reply:
        if words[0] == "--load":
            self.loaded = self.files[words[1]]
            self.next_command_line = words[3].partition("=")[2]
        elif words[0] == "--unload":
            self.loaded = None
        return OK

    def do_systemctl(self, verb: str) -> Reply:
        into = GOOD
        if verb == "kexec":
            into = self.kernels[self.loaded or b""]
        elif self.files.get("/boot/grub/next_entry"):
            del self.files["/boot/grub/next_entry"]
            into = self._grub_kernel()
        if verb == "kexec" or into is not GOOD or self.reboot_works:
            self.world.later(2.0, lambda: self.restart(into))
        return OK

    def do_reboot(self) -> Reply:
        if self.reboot_works:
            self.world.later(2.0, lambda: self.restart(GOOD))
        return OK

    def do_agent(self, mode: str, *words: str) -> Reply:
        return getattr(self, f"agent_{mode.replace('-', '_')}")(*words)  # type: ignore[no-any-return]

    def agent_swap_token(self, path: str, expected: str, text: str) -> Reply:
        now = self.files.get(path, b"-").decode()
        if self.free_bytes < len(text):
            return Reply(1, "", f"lab_agent: write {path}.7.new: No space left on device")
        if now.split()[0] != expected:
            return Reply(3, now, "")
        if text:
            self.files[path] = text.encode()
        else:
            del self.files[path]
        return OK

    def agent_set(self, path: str, value: str) -> Reply:
        if path == "/proc/sysrq-trigger":
            if value == "b" and self.sysrq_works:
                self.restart(GOOD)
            return OK
        if path not in self.settings:
            return Reply(1, "", f"open {path}: No such file or directory")
        self.settings[path] = value
        return OK

    def agent_swapon(self, device: str) -> Reply:
        self.swap.append(device)
        return OK

    def agent_swapoff(self, device: str) -> Reply:
        self.swap.remove(device)
        return OK

    def agent_later(self, *words: str) -> Reply:
        return self.do_systemctl("kexec" if words[0] == "kexec" else "reboot")

    def agent_stop(self, folder: str) -> Reply:
        return OK

    def agent_run(self, *words: str) -> Reply:
        folder = words[words.index("--dir") + 1]
        if f"{folder}/started" in self.files:
            return Reply(3, "", "")
        epoch = self.epoch
        self.files[f"{folder}/started"] = b""
        self.files[f"{folder}/keeper"] = f"77 4242 {self.boot_id} 78\n".encode()
        self.files["/proc/77/stat"] = b"77 (lab_agent) S" + b" 0" * 18 + b" 4242 0\n"
        self.files[f"{folder}/status.log"] = b"pid1 1\n"

        def end() -> None:
            if self.epoch == epoch:
                self.files[f"{folder}/status.log"] = f"pid1 1\n{self.program.status}".encode()
                self.files[f"{folder}/kernel.log"] = self.program.kernel_log.encode()
                self.files[f"{folder}/recording.bin"] = self.program.recording
                self.files[f"{folder}/done"] = b"done\n"

        self.on_program()
        self.world.later(self.program.seconds, end)
        return OK

    # --- GRUB ---------------------------------------------------------------------------------------------------------

    def do_grub_probe(self, *words: str) -> Reply:
        return Reply(0, "1234-uuid\n", "")

    def do_grub_mkrelpath(self, path: str) -> Reply:
        return Reply(0, f"{path}\n", "")

    def do_grub_reboot(self, entry: str) -> Reply:
        self.files["/boot/grub/next_entry"] = entry.encode()
        return OK

    def do_grub_editenv(self, *words: str) -> Reply:
        if "unset" in words:
            self.files.pop("/boot/grub/next_entry", None)
        entry = self.files.get("/boot/grub/next_entry", b"").decode()
        return Reply(0, f"next_entry={entry}\n" if entry else "", "")

    def _grub_kernel(self) -> KernelId:
        menu = self.files["/boot/grub/custom.cfg"].decode("utf-8", "replace")
        path = menu.partition("\tlinux '")[2].partition("'")[0]
        self.next_command_line = menu.partition(f"'{path}' '")[2].partition("'\n")[0].replace("' '", " ")
        return self.kernels[self.files[path]]


OK = Reply(0, "", "")


@dataclass
class FakeTransport:
    """A connection to one boot of a :class:`FakeHost`."""

    host: FakeHost
    epoch: int
    closed: bool = False

    def _call(self, call: str, *words: str) -> None:
        self.host.world.sleep(CALL_S)
        self.host.check(call, words)
        if self.closed or not self.host.up or self.host.epoch != self.epoch:
            raise Cut("the connection broke")

    def run(self, argv: Sequence[str], *, deadline_s: float) -> Reply:
        self._call("run", *argv)
        return self.host.execute(tuple(argv))

    def read(self, path: str) -> bytes:
        self._call("read", path)
        return self.host.read(path)

    def write(self, path: str, data: bytes) -> None:
        self._call("write", path)
        self.host.write(path, data)

    def names(self, folder: str) -> tuple[str, ...]:
        self._call("names", folder)
        if folder in self.host.folders and folder.startswith("/run"):
            return ("x",)
        paths = [*self.host.files, *self.host.settings]
        inside = (path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/"))
        return tuple(sorted({path.partition("/")[0] for path in inside}))

    def size(self, path: str) -> int:
        self._call("size", path)
        return len(self.host.files[path]) if path in self.host.files else -1

    def append(self, path: str, source: Path, start: int) -> None:
        self._call("append", path)
        data = source.read_bytes()
        sent = self.host.files.get(path, b"")[:start]
        for offset in range(start, len(data), 1024):
            self._call("append-block", path, str(offset))
            if self.host.free_bytes < len(data):
                raise CannotWrite(f"cannot write {path}: Failure")
            sent += data[offset : offset + 1024]
            self.host.files[path] = sent

    def fetch(self, path: str, to: Path, start: int) -> None:
        self._call("fetch", path)
        data = self.host.read(path)
        with to.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            for offset in range(start, len(data), 1024):
                self._call("fetch-block", path, str(offset))
                stream.write(data[offset : offset + 1024])
                stream.flush()

    def remove(self, path: str) -> None:
        self._call("remove", path)
        self.host.files.pop(path, None)

    def home(self) -> str:
        self._call("home")
        return HOME

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeOutside:
    """The console and the power switch of a :class:`FakeHost`."""

    host: FakeHost
    has_console: bool = True
    power: str = ""  # Why the power command fails.
    console_sysrq: str = "no console_break in the lab file"
    log: Path | None = None
    said: list[str] = field(default_factory=list)

    @property
    def watching(self) -> bool:
        return self.log is not None

    def watch(self, log: Path) -> None:
        assert not self.watching
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def unwatch(self) -> None:
        self.log = None

    def print(self, text: str) -> None:
        """The machine's kernel writes to its serial line."""
        if self.log is not None and self.has_console:
            with self.log.open("a") as stream:
                stream.write(text)

    def panicked(self) -> bool:
        return self.log is not None and "Kernel panic" in self.log.read_text()

    def sysrq(self, keys: str) -> str:
        self.said.append(f"sysrq {keys}")
        if self.console_sysrq or not self.watching:
            return self.console_sysrq or "the console command does not run"
        if "b" in keys:
            self.host.restart(GOOD)
        return ""

    def power_cycle(self) -> str:
        self.said.append("power")
        if not self.power:
            self.host.restart(GOOD)
        return self.power


def lab_host(folder: Path, **changes: object) -> LabHost:
    """A description with short deadlines. ``folder`` is for its files here."""
    values: dict[str, object] = {
        "name": "rack1", "address": "rack1", "user": "root", "known_hosts": folder / "known_hosts", "agent": True,
        "console": ("console",), "power": ("power",),
        "deadlines": Deadlines(boot_s=120.0, return_s=120.0, copy_s=60.0, load_s=30.0),
    }  # fmt: skip
    return LabHost(**(values | changes))  # type: ignore[arg-type]


def machine(host: FakeHost, outside: FakeOutside, described: LabHost, agent: Path, said: list[str]) -> Machine:
    """A machine over the simulated one; what it says to the user goes to ``said``."""
    return Machine(
        described,
        agent,
        connect=host.connect,
        outside=outside,
        clock=host.world,
        say=said.append,
        keep=lambda folder, lease, stood_still: lambda: None,
    )


class Once:
    """A fault that strikes once: at the ``nth`` call that ``matches``."""

    def __init__(
        self, host: FakeHost, matches: Callable[[str, tuple[str, ...]], bool], act: Callable[[], None], nth: int = 1
    ) -> None:
        self._host, self._matches, self._act, self._left = host, matches, act, nth
        self.struck = False
        host.faults.append(self)

    def __call__(self, call: str, words: tuple[str, ...]) -> None:
        if not self.struck and self._matches(call, words):
            self._left -= 1
            if self._left == 0:
                self.struck = True
                self._act()


def cut() -> None:
    """The connection breaks, and the machine does not notice."""
    raise Cut("the connection was cut by the test")
