"""How a machine is brought into the kernel under test.

Either way a reset, however it comes about, leads back to the known-good kernel: ``kexec`` leaves the boot loader alone,
and ``grub`` only names an entry for the next boot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import TargetError
from orchestrator.kernel.build import IMAGE
from orchestrator.lab.link import Link
from orchestrator.lab.remote import Cut, NoSuchFile, Reply
from orchestrator.lab.types import LabHost

ENTRY = "orch-test"
BEGIN, END = "# orch: begin (written by the tool; the kernel under test, chosen for one boot only)", "# orch: end"
CUSTOM = "/boot/grub/custom.cfg"  # read by /etc/grub.d/41_custom's part of grub.cfg, so that no update-grub is needed
GRUB_FOLDER = "/boot/orch"
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
    try:
        old = link.insist(lambda transport: transport.read(CUSTOM), link.host.deadlines.answer_s).decode("utf-8")
    except NoSuchFile:
        old = ""
    data = (without_entry(old) + entry).encode()
    link.insist(lambda transport: transport.write(scratch, data), link.host.deadlines.answer_s)
    for argv in (
        ("install", "-m", "644", "--", scratch, f"{CUSTOM}.new"),
        ("mv", "--", f"{CUSTOM}.new", CUSTOM),
        ("grub-reboot", ENTRY),
        ("sync",),
    ):
        reply = link.run(argv, root=True)
        if reply.returncode != 0:
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


def without_entry(text: str) -> str:
    """custom.cfg without our block."""
    return re.sub(rf"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", "", text, flags=re.MULTILINE | re.DOTALL)


def install(link: Link, path: str) -> str:
    """Where the boot method finds a file that was copied to ``path``: GRUB must be able to read the disk.

    Raises :class:`Refused`, Cut.
    """
    if link.host.boot != "grub":
        return path
    to = f"{GRUB_FOLDER}/{path.rpartition('/')[2]}"
    for argv in (("mkdir", "-p", "--", GRUB_FOLDER), ("cp", "--", path, f"{to}.new"), ("mv", "--", f"{to}.new", to)):
        reply = link.run(argv, root=True)
        if reply.returncode != 0:
            raise Refused(f"grub refused: {argv[0]}: {reply.said}")
    return to


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
