"""How a machine is brought into the kernel under test.

Either way a reset, however it comes about, leads back to the known-good kernel: ``kexec`` leaves the boot loader alone,
and ``grub`` only names an entry for the next boot.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.errors import TargetError
from orchestrator.kernel.build import IMAGE
from orchestrator.lab.link import Link
from orchestrator.lab.remote import CannotWrite, Cut, NoSuchFile, Reply, Transport
from orchestrator.lab.types import LabHost

ENTRY = "orch-test"
BEGIN, END = "# orch: begin (written by the tool; the kernel under test, chosen for one boot only)", "# orch: end"
CUSTOM = "/boot/grub/custom.cfg"  # read by /etc/grub.d/41_custom's part of grub.cfg, so that no update-grub is needed
GRUB_FOLDER = "/boot/orch"
SPARE_KIB = 1024  # of /boot, for GRUB's own files
SYSTEMD = "/run/systemd/system"  # sd_booted(3)

# Of the known-good kernel's command line, what must not reach the kernel under test: its image and initramfs, memory
# kept for a crash kernel that nobody loads, and what hides messages.
DROPPED = ("BOOT_IMAGE", "initrd", "crashkernel", "quiet", "splash", "loglevel", "panic")
ADDED = (
    # A panic leads back at once, by the firmware, to the known-good kernel.
    "panic=-1",
    # Warnings reach the console, and notices: the first one names the kernel, so that its messages can be told from
    # those of the kernel before it.
    "loglevel=6",
    # As in QEMU (target/qemu.py): an NMI says where the kernel is; the same addresses in every boot and every arm.
    "unknown_nmi_panic", "nokaslr", "norandmaps",
)  # fmt: skip


class Refused(TargetError):
    """The machine would not take the kernel; it still runs the one that it ran."""


@dataclass(frozen=True)
class Image:
    """A kernel on the host: absolute paths there. ``initrd`` is empty if it mounts the root file system itself."""

    kernel: str
    initrd: str


def command_line(own: str, host: LabHost, root: str, asked: Sequence[str]) -> str:
    """The command line of the kernel under test, from the machine's own and what the trial ``asked`` for.

    ``root`` is what ``root=`` becomes, empty to leave it. Words of ``host.append`` replace those of the same name.
    """
    added = [*ADDED, *asked, *([f"root={root}"] if root else [])]
    names = {_name(word) for word in (*host.append, *added)} | set(DROPPED)
    # A machine has several consoles; and they stay what they are unless the lab file says otherwise.
    kept = [word for word in own.split() if _name(word) not in names]
    given = {_name(word) for word in host.append}
    return " ".join([*kept, *(word for word in added if _name(word) not in given), *host.append])


def find_root(link: Link, own: str) -> str:
    """What ``root=`` must be for a kernel without an initramfs, which knows no UUIDs of file systems; empty: as it is.

    ``PARTUUID=`` is understood by the kernel itself (init/do_mounts.c, name_to_dev_t() in 5.10). Raises
    :class:`Refused` if the root is nothing that a kernel could mount by itself.
    """
    given = next((word.partition("=")[2] for word in own.split() if word.startswith("root=")), "")
    if given.startswith(("/dev/sd", "/dev/vd", "/dev/nvme", "/dev/xvd", "/dev/mmcblk", "PARTUUID=")):
        return ""
    device = _answer(link, ("findmnt", "--noheadings", "--output", "SOURCE", "/"))
    known = _answer(link, ("lsblk", "--noheadings", "--nodeps", "--output", "PARTUUID,TYPE", device)).split()
    if len(known) == 2 and known[1] == "part":
        return f"PARTUUID={known[0]}"
    if known == ["disk"]:
        return device
    raise Refused(
        f"{link.host.name}: the root file system is on {device}, which a kernel cannot mount without an initramfs",
        hint=f"set initrd, or append: [root=…], for {link.host.name} in the lab file",
    )


def load(link: Link, image: Image, line: str, scratch: str) -> None:
    """Make the machine ready to boot ``image``; nothing has changed for what runs. ``scratch`` is a file of ours there.

    Raises :class:`Refused`, :class:`~orchestrator.lab.remote.CannotWrite`, Cut.
    """
    if link.host.boot == "grub":
        _load_grub(link, image, line, scratch)
    else:
        _load_kexec(link, image, line)


def unload(link: Link) -> None:
    """Take back what :func:`load` did, so that the next reboot is an ordinary one. Best effort."""
    if link.host.boot == "grub":
        link.run(("grub-editenv", "-", "unset", "next_entry"), root=True)
    elif link.host.boot == "kexec":
        link.run(("kexec", "--unload"), root=True)


def tidy(link: Link, scratch: str) -> None:
    """:func:`unload`, and remove what is not needed any more: our entry in GRUB's menu, and all files but its own.

    Those of the last kernel stay, since the next trial may well boot it again. Best effort.
    """
    unload(link)
    if link.host.boot != "grub":
        return
    text = _read_custom(link)
    rest = without_entry(text)
    if rest == text:
        return
    _keep_only(link, [PurePosixPath(path).name for path in _files_of_entry(text)])
    # A menu that cannot be written is told by the next trial; its entry was for one boot only.
    with contextlib.suppress(Refused, CannotWrite):
        _write_custom(link, rest, scratch)


def go(link: Link, agent: str) -> None:
    """Leave the running kernel for the one that was loaded. The connection is gone afterwards.

    ``agent`` is the path of ours there. Raises :class:`Refused`, Cut.
    """
    if link.host.boot == "grub":
        reboot(link, agent)
        return
    link.run(("sync",), deadline_s=link.host.deadlines.return_s)
    # systemctl's way unmounts first; without systemd the file systems' journals must do.
    _leave(link, ("systemctl", "kexec") if _has_systemd(link) else (agent, "later", "kexec", "--exec"))


def reboot(link: Link, agent: str) -> None:
    """Restart the machine by its init. Raises :class:`Refused`, and Cut if it cannot even be asked."""
    later = (agent, "later") if agent else ()  # So that an init that is quick does not break its own answer.
    _leave(link, ("systemctl", "reboot") if _has_systemd(link) else (*later, "reboot"))


def _has_systemd(link: Link) -> bool:
    return bool(link.insist(lambda transport: transport.names(SYSTEMD), link.host.deadlines.answer_s))


def one_time_entry_left(link: Link) -> bool:
    """Whether GRUB could not clear its one-time entry: then a power cycle would not lead back."""
    reply = link.run(("grub-editenv", "-", "list"), root=True)
    return re.search(rf"^next_entry={ENTRY}$", reply.stdout, re.MULTILINE) is not None


def _leave(link: Link, argv: Sequence[str]) -> None:
    """A command that ends the connection, and may end it before it answers."""
    try:
        reply = link.once(lambda transport: transport.run((*link.root, *argv), deadline_s=link.host.deadlines.answer_s))
    except Cut:
        return
    finally:
        link.drop()
    if reply.returncode not in (0, 255):  # 255: it was killed while the machine went down.
        raise Refused(f"{link.host.name}: {' '.join(argv)}: {reply.said}")


def _load_kexec(link: Link, image: Image, line: str) -> None:
    # --args-linux: a vmlinux is an ELF file, which kexec-tools would otherwise start without boot parameters.
    argv = ["kexec", "--load", image.kernel, "--args-linux", f"--command-line={line}"]
    argv += [f"--initrd={image.initrd}"] if image.initrd else []
    reply = link.run(argv, root=True, deadline_s=link.host.deadlines.copy_s)
    if reply.returncode != 0:
        raise Refused(f"kexec refused: {_why(reply)}", hint="apt-get install kexec-tools" if _missing(reply) else None)
    loaded = link.insist(lambda transport: transport.read("/sys/kernel/kexec_loaded"), link.host.deadlines.answer_s)
    if loaded.strip() != b"1":
        raise Refused("kexec refused: it said that it loaded the kernel, and /sys/kernel/kexec_loaded says no")


def _load_grub(link: Link, image: Image, line: str, scratch: str) -> None:
    """An entry in custom.cfg, beside whatever else stands there, and ``grub-reboot`` for the next boot only."""
    entry = grub_entry(
        _answer(link, ("grub-probe", "--target=fs_uuid", image.kernel)),
        Image(*(_answer(link, ("grub-mkrelpath", path)) if path else "" for path in (image.kernel, image.initrd))),
        line,
    )
    _write_custom(link, without_entry(_read_custom(link)) + entry, scratch)
    for argv in (("grub-reboot", ENTRY), ("sync",)):
        _must(link, argv)


def _read_custom(link: Link) -> str:
    """custom.cfg, whatever else stands in it."""
    try:
        data = link.insist(lambda transport: transport.read(CUSTOM), link.host.deadlines.answer_s)
    except NoSuchFile:
        return ""
    return data.decode("utf-8", "surrogateescape")


def _write_custom(link: Link, text: str, scratch: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    link.insist(lambda transport: transport.write(scratch, data), link.host.deadlines.answer_s)
    _must(link, ("install", "-m", "644", "--", scratch, f"{CUSTOM}.new"))
    # It may have been moved before a cut: then there is nothing to move any more.
    _must(link, ("mv", "--", f"{CUSTOM}.new", CUSTOM), or_done=lambda: _read_custom(link) == text)


def _must(link: Link, argv: Sequence[str], or_done: Callable[[], bool] = lambda: False) -> None:
    """Run what must succeed, or, if it cannot be done twice, be found done."""
    reply = link.run(argv, root=True, deadline_s=link.host.deadlines.copy_s)
    if reply.returncode != 0 and not or_done():
        raise Refused(f"grub refused: {argv[0]}: {reply.said}")


def grub_entry(uuid: str, image: Image, line: str) -> str:
    """The block in custom.cfg. Every word stands in single quotes: GRUB's script knows no special character in them."""
    words = line.split()
    for word in (uuid, image.kernel, image.initrd, *words):
        if "'" in word or "\n" in word:
            raise Refused(f"grub refused: {word!r} cannot stand in a menu entry")
    lines = [
        BEGIN,
        f"menuentry 'kernel under test' --id '{ENTRY}' {{",
        f"\tsearch --no-floppy --fs-uuid --set=root '{uuid}'",
        f"\tlinux '{image.kernel}' {' '.join(_quoted(word) for word in words)}",
        *([f"\tinitrd '{image.initrd}'"] if image.initrd else []),
        "}",
        END,
    ]
    return "".join(f"{line}\n" for line in lines)


def _files_of_entry(text: str) -> list[str]:
    """The kernel and the initramfs of our block in custom.cfg, as GRUB finds them."""
    found = re.search(rf"^{re.escape(BEGIN)}\n(.*?)^{re.escape(END)}\n", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^\t(?:linux|initrd) '([^']*)'", found.group(1), re.MULTILINE) if found else []


def without_entry(text: str) -> str:
    """custom.cfg without our block."""
    return re.sub(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", "", text, flags=re.MULTILINE | re.DOTALL)


def install(link: Link, *paths: str) -> tuple[str, ...]:
    """Where the boot method finds the files that were copied to ``paths``: GRUB must be able to read the disk.

    The last part of a path is the beginning of the file's SHA-256. Raises :class:`Refused`, Cut.
    """
    if link.host.boot != "grub":
        return paths
    _must(link, ("mkdir", "-p", "--", GRUB_FOLDER))
    files = {path: f"{GRUB_FOLDER}/{PurePosixPath(path).name}" for path in paths}
    missing = {path: to for path, to in files.items() if not _is_whole(link, to)}
    if missing:
        _make_room(link, tuple(missing), [PurePosixPath(path).name for path in paths])
    for path, to in missing.items():
        _must(link, ("cp", "--", path, f"{to}.new"))
        _must(link, ("mv", "--", f"{to}.new", to), or_done=lambda to=to: _is_whole(link, to))  # type: ignore[misc]
    return tuple(files.values())


def _is_whole(link: Link, path: str) -> bool:
    """Whether a file that is named by its content is there, and has that content."""
    reply = link.run(("sha256sum", "--", path), root=True, deadline_s=link.host.deadlines.copy_s)
    return reply.returncode == 0 and reply.stdout.startswith(PurePosixPath(path).name)


def _make_room(link: Link, missing: Sequence[str], names: Sequence[str]) -> None:
    """See to it that ``missing`` fit on the disk of /boot, if need be without other kernels of ours than ``names``."""

    def size(transport: Transport) -> int:
        return sum(transport.size(path) for path in missing)

    need_kib = -(-link.insist(size, link.host.deadlines.answer_s) // 1024) + SPARE_KIB
    if _free_kib(link) < need_kib:
        _keep_only(link, names)
    free_kib = _free_kib(link)
    if free_kib < need_kib:
        raise Refused(f"grub refused: {free_kib} KiB are free for {GRUB_FOLDER}, and {need_kib} KiB are needed")


def _keep_only(link: Link, names: Sequence[str]) -> None:
    """Remove every file in our folder of /boot but ``names``."""
    there = link.insist(lambda transport: transport.names(GRUB_FOLDER), link.host.deadlines.answer_s)
    old = [f"{GRUB_FOLDER}/{name}" for name in there if name not in names]
    if old:
        link.run(("rm", "-f", "--", *old), root=True)


def _free_kib(link: Link) -> int:
    """By POSIX df: the fourth field of the second line."""
    reply = link.run(("df", "-Pk", "--", GRUB_FOLDER), root=True)
    fields = reply.stdout.splitlines()[1:2]
    if reply.returncode != 0 or not fields:
        raise Refused(f"grub refused: df: {reply.said}")
    return int(fields[0].split()[3])


def file_to_boot(vmlinux: Path, host: LabHost) -> Path:
    """Which of a build's files the host boots: GRUB's ``linux`` command takes no ELF file."""
    return vmlinux.with_name(IMAGE) if host.boot == "grub" else vmlinux


def _quoted(word: str) -> str:
    return f"'{word}'"


def _name(word: str) -> str:
    return word.partition("=")[0]


def _answer(link: Link, argv: Sequence[str]) -> str:
    reply = link.run(argv, root=True)
    if reply.returncode != 0 or not reply.stdout.strip():
        raise Refused(f"{link.host.name}: {' '.join(argv)}: {reply.said}")
    return reply.stdout.strip().splitlines()[0]


def _why(reply: Reply) -> str:
    """kexec's reason, behind which it lists every segment that it would have loaded (kexec-tools, my_load())."""
    return next((line.strip() for line in reply.stderr.splitlines() if "failed: " in line), reply.said)


def _missing(reply: Reply) -> bool:
    return reply.returncode == 127
