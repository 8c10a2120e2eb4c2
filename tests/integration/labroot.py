"""The disk of a lab host: a Debian root made by debootstrap, its known-good kernel, and what QEMU boots first.

    CACHE/lab-image/root-KEY/{root.tar, kernel.deb}        what comes over the network, by the packages and their suite
    CACHE/lab-image/image-KEY/{disk.img, vmlinuz, initrd.cpio, release}     made from it and from tests/data/lab

Both are published whole, under a lock. The packages come from the mirror that this machine's apt uses, and are checked
against Debian's keys by debootstrap and by apt. Needs root: debootstrap makes device nodes and changes its root.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator import proc
from orchestrator.cache import lock, publish
from orchestrator.errors import SourceError, UserError
from orchestrator.kernel import debian

DATA = Path(__file__).parents[1] / "data/lab"
SUITE = "bookworm"
# sshd with its server of files; what loads the kernel under test; modprobe.
PACKAGES = ("openssh-server", "openssh-sftp-server", "kexec-tools", "kmod")
GRUB = ("grub2-common", "grub-pc-bin")  # for a host that has a boot loader
# The smallest of Debian's kernels that runs on QEMU's PC. Its drivers of disk, network and KVM are modules.
KERNEL = "linux-image-cloud-amd64"
BOOT_MODULES = ("virtio_pci", "virtio_blk")
MODULES = ("virtio_net", "kvm_amd")
# Nothing of these is used on a lab host; they are half of the root.
PRUNED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt/lists", "var/cache")
DISK_MIB = 512
LOCK_WAIT_S = 1800.0


@dataclass(frozen=True)
class Named:
    """What the kernel room fetches packages by, for any package: its own DebianSource takes kernel sources only."""

    package: str
    suite: str = SUITE


@dataclass(frozen=True)
class LabImage:
    """What every lab host starts from. ``disk`` is ext4 without a partition table; ``release`` is ``uname -r``.

    With ``grub`` there is GRUB in it, and the known-good kernel in its ``/boot``: to be installed by the host itself.
    """

    disk: Path
    vmlinuz: Path
    initrd: Path
    release: str
    grub: bool = False


def lab_image(cache: Path, say: Callable[[str], None], grub: bool = False) -> LabImage:
    """The image from the cache, or made now: minutes the first time, and 5 s when only ``tests/data/lab`` changed."""
    parts = [repr(grub).encode(), Path(__file__).read_bytes(), *(path.read_bytes() for path in sorted(DATA.iterdir()))]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    folder = cache / "lab-image" / f"image-{key}"
    with lock(cache / "lab-image/.lock", wait_s=LOCK_WAIT_S, say=say) as fd:
        if not folder.is_dir():
            root = _debian_root(cache / "lab-image", (*PACKAGES, *(GRUB if grub else ())), fd, say)
            with publish(folder) as new:
                _make_image(root, new, grub, fd)
    release = (folder / "release").read_text().strip()
    return LabImage(folder / "disk.img", folder / "vmlinuz", folder / "initrd.cpio", release, grub)


def _debian_root(cache: Path, packages: tuple[str, ...], fd: int, say: Callable[[str], None]) -> Path:
    """A folder with ``root.tar`` and ``kernel.deb``. Raises :class:`UserError` without root."""
    if os.geteuid() != 0:
        raise UserError("a lab host's disk is made by debootstrap, which must be root", hint="run the tests as root")
    folder = cache / f"root-{hashlib.sha256(repr((SUITE, packages, KERNEL)).encode()).hexdigest()[:24]}"
    if folder.is_dir():
        return folder
    with publish(folder) as new:
        kernel = _kernel_package(new / "kernel", say)
        kernel.rename(new / "kernel.deb")
        shutil.rmtree(new / "kernel")
        say(f"making a Debian root ({SUITE}) by debootstrap")
        argv = [proc.require("debootstrap", "debootstrap"), f"--keyring={debian.KEYRING}", "--variant=minbase"]
        argv += ["--merged-usr", f"--include={','.join(packages)}", SUITE, str(new / "root"), _mirror()]
        proc.run(argv, log=new / "debootstrap.log", deadline_s=1800, env=_proxy(), pass_fds=(fd,))
        pruned = [f"--exclude=./{name}/*" for name in PRUNED]
        proc.run(["tar", "-c", *pruned, "-C", new / "root", "-f", new / "root.tar", "."], deadline_s=300)
        shutil.rmtree(new / "root")
    return folder


def _mirror() -> str:
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    return debian.mirrors(SUITE, debian.configured(), codename)[0]


def _proxy() -> dict[str, str]:
    """debootstrap fetches with wget, which knows nothing of apt's proxy."""
    argv = [proc.require("apt-config", "apt"), "shell", "proxy", "Acquire::http::Proxy"]
    found = re.fullmatch(r"proxy='(\S+)'", proc.run(argv).stdout.strip())
    return {"http_proxy": found[1]} if found and found[1] != "DIRECT" else {}


def _kernel_package(folder: Path, say: Callable[[str], None]) -> Path:
    """The package that :data:`KERNEL`, which only names the newest one, depends on."""
    (folder / "names").mkdir(parents=True)
    names = debian.download(Named(KERNEL), folder / "names", say)
    depends = proc.run(["dpkg-deb", "-f", names.path, "Depends"]).stdout
    found = re.match(r"linux-image-\S+", depends)
    if found is None:
        raise SourceError(f"{KERNEL} depends on {depends!r}, not on a kernel")
    (folder / "image").mkdir()
    return debian.download(Named(found[0]), folder / "image", say).path


def _make_image(origin: Path, new: Path, grub: bool, fd: int) -> None:
    root = new / "root"
    root.mkdir()
    proc.run(["tar", "-x", "-C", root, "-f", origin / "root.tar"], deadline_s=300)
    proc.run(["dpkg-deb", "-x", origin / "kernel.deb", new / "kernel"], deadline_s=300)
    (vmlinuz,) = (new / "kernel/boot").glob("vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    vmlinuz.rename(new / "vmlinuz")
    (new / "release").write_text(f"{release}\n")
    modules = new / "kernel/lib/modules"
    _initrd(modules, release, new)
    _install_modules(modules, release, root)
    _install_files(root, release)
    if grub:
        shutil.copy(new / "vmlinuz", root / f"boot/vmlinuz-{release}")
        shutil.copy(new / "initrd.cpio", root / f"boot/initrd.img-{release}")
    argv: list[str | Path] = [proc.require("mke2fs", "e2fsprogs"), "-q", "-t", "ext4", "-J", "size=4", "-d", root]
    proc.run([*argv, new / "disk.img", f"{DISK_MIB}M"], deadline_s=300, pass_fds=(fd,))
    shutil.rmtree(root)
    shutil.rmtree(new / "kernel")


def _needed(modules: Path, release: str, names: tuple[str, ...]) -> list[Path]:
    """The files of modules and of all that they need, in the order in which they are to be loaded."""
    root = modules.parents[1]
    proc.run([proc.require("depmod", "kmod"), "-b", root, release])
    argv = [proc.require("modprobe", "kmod"), "-d", root, "-S", release, "--show-depends"]
    lines = [line for name in names for line in proc.run([*argv, name]).stdout.splitlines()]
    return [Path(line.split()[1]) for line in dict.fromkeys(lines) if line.startswith("insmod ")]


def _initrd(modules: Path, release: str, new: Path) -> None:
    root = new / "initrd"
    for name in ("bin", "dev", "lib", "proc", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(proc.require("busybox", "busybox-static"), root / "bin/busybox")
    files = _needed(modules, release, BOOT_MODULES)
    for file in files:
        shutil.copy(file, root / "lib")
    (root / "modules").write_text("".join(f"{file.name}\n" for file in files))
    shutil.copy(DATA / "initrd-init", root / "init")
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    argv = [proc.require("cpio", "cpio"), "--create", "--format=newc", "--quiet", f"--file={new / 'initrd.cpio'}"]
    proc.run(argv, cwd=root, stdin=names.encode())
    shutil.rmtree(root)


def _install_modules(modules: Path, release: str, root: Path) -> None:
    """Only what is used: all of the modules are as large as the rest of the disk."""
    files = [file for file in _needed(modules, release, MODULES)]
    places = [Path("/usr/lib/modules", file.relative_to(modules)) for file in files]
    for file, place in zip(files, places, strict=True):
        (root / place.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / place.relative_to("/"))
    known = {file.name for file in _needed(modules, release, BOOT_MODULES)}
    (root / "etc/modules").write_text("".join(f"{place}\n" for place in places if place.name not in known))


def _install_files(root: Path, release: str) -> None:
    shutil.copy(proc.require("busybox", "busybox-static"), root / "usr/bin/busybox")
    for data, place, mode in (
        ("init", "usr/sbin/init", 0o755),
        ("restart", "usr/sbin/reboot", 0o755),
        ("restart", "usr/sbin/poweroff", 0o755),
        ("sshd_config", "etc/ssh/sshd_config", 0o644),
    ):
        shutil.copy(DATA / data, root / place)
        (root / place).chmod(mode)
    (root / "etc/known-good").write_text(f"{release}\n")
    (root / "root/.ssh").mkdir(mode=0o700)
    # Each host gets its own.
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/hostname").unlink(missing_ok=True)
