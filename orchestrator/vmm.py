"""The VMM of Linux guests, packed: the program, its libraries and its firmware, as this machine has them.

    vmm/ID/PATH         in the cache: each file at the path that it has in the host under test

ID covers every path and content. Nothing is run to find the libraries: the dynamic sections and the dynamic linker's
cache say which they are.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import cache, proc
from orchestrator.errors import UserError, printable
from orchestrator.experiment import LinuxGuestSpec
from orchestrator.kernel import elf
from orchestrator.store import file_sha256, listing_sha256

# What QEMU loads for a microvm that boots an uncompressed kernel with an initramfs; in Debian of qemu-system-data.
QEMU_ROMS = ("qboot.rom", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin")
QEMU_PACKAGE = "qemu-system-x86"
LIBC = "libc.so.6"
LDCONFIG = "/sbin/ldconfig"
LD_CACHE_LINE = re.compile(r"^\s*(\S+) \(([^)]*)\) => (/\S+)$", re.MULTILINE)
PACKAGE_LINE = re.compile(r"^([a-z0-9][a-z0-9+.:-]*): (/\S+)$", re.MULTILINE)
LOCK_WAIT_S = 600.0


@dataclass(frozen=True)
class PackedFile:
    """A file by its path in the host under test (without the leading slash). ``package`` and ``version`` are Debian's,
    empty for a file of no package."""

    path: str
    size_bytes: int
    sha256: str
    package: str
    version: str


@dataclass(frozen=True)
class Packed:
    """A VMM with all that it opens. ``program`` is its path in the host under test, absolute."""

    program: str
    id: str
    files: tuple[PackedFile, ...]

    @property
    def mib(self) -> float:
        return sum(file.size_bytes for file in self.files) / 2**20

    @property
    def version(self) -> str:
        """The package and version of the program itself, or its hash."""
        own = next(file for file in self.files if f"/{file.path}" == self.program)
        return f"{own.package} {own.version}" if own.package else f"sha256 {own.sha256[:16]}"


def folder(packed: Packed) -> Path:
    """Where the cache has its files; :class:`UserError` if it no longer has them."""
    found = cache.cache_dir() / "vmm" / packed.id
    if not found.is_dir():
        raise UserError(f"{packed.program} as it was packed ({packed.version}) is no longer in the cache")
    return found


def pack(spec: LinuxGuestSpec, say: Callable[[str], None]) -> Packed:
    """Find the VMM and all that it needs, and keep a copy in the cache.

    Raises :class:`UserError` if it is not installed, is no dynamically linked x86-64 program, or lacks a library or
    its firmware.
    """
    program = _program(spec)
    sources = {str(program): program, **_libraries(program)}
    if spec.is_qemu:
        sources |= {str(path): path for path in _roms(program)}
    for path in spec.files:
        found = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
        sources |= {str(item): item for item in found}
    owners = _packages(sources)
    files = tuple(
        PackedFile(where.lstrip("/"), path.stat().st_size, file_sha256(path), *owners.get(where, ("", "")))
        for where, path in sorted(sources.items())
    )
    digest = listing_sha256({file.path: file.sha256 for file in files})
    _keep(cache.cache_dir() / "vmm" / digest, sources, say)
    return Packed(str(program), digest, files)


def _keep(kept: Path, sources: dict[str, Path], say: Callable[[str], None]) -> None:
    if kept.is_dir():
        return
    with cache.lock(kept.with_suffix(".lock"), wait_s=LOCK_WAIT_S, say=say), cache.publish(kept) as temporary:
        for where, path in sources.items():
            to = temporary / where.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def _program(spec: LinuxGuestSpec) -> Path:
    """The VMM, absolute; not resolved, since QEMU finds its firmware relative to its own path."""
    if "/" in spec.vmm:
        path = Path(spec.vmm)
        if not path.is_file():
            raise UserError(f"linux_guest.vmm: there is no program {path}")
        return path
    hint = QEMU_PACKAGE if spec.is_qemu else f"the package of {spec.vmm}, or give its path"
    return Path(proc.require(spec.vmm, hint))


def _libraries(program: Path) -> dict[str, Path]:
    """The dynamic linker and every library, by where they must lie.

    Libraries all lie in the C library's own folder, which the linker searches without a cache or a path.
    """
    top = elf.dynamic(program)
    if top is None or top.interpreter is None:
        raise UserError(
            f"{program} is no dynamically linked x86-64 program: libstorm.so cannot be loaded into it",
            hint="linux_guest: {vmm: PATH} of one that is",
        )
    known = _linker_cache()
    found: dict[str, Path] = {}
    waiting = [(program, top)]
    while waiting:
        needer, section = waiting.pop()
        for name in section.needed:
            if name in found or name == Path(top.interpreter).name:
                continue
            found[name] = _library(name, needer, section, known)
            below = elf.dynamic(found[name])
            if below is not None:
                waiting.append((found[name], below))
    if LIBC not in found:
        raise UserError(f"{program} does not use {LIBC}: libstorm.so cannot stand between it and KVM")
    home = found[LIBC].parent
    return {top.interpreter: Path(top.interpreter), **{str(home / name): path for name, path in found.items()}}


def _library(name: str, needer: Path, section: elf.Dynamic, known: dict[str, Path]) -> Path:
    own = (Path(place) / name for place in section.search)
    path = next((path for path in own if path.is_file()), known.get(name))
    if path is None:
        raise UserError(f"{needer} needs the library {printable(name)}, which is not on this machine")
    return path


def _linker_cache() -> dict[str, Path]:
    """Libraries for x86-64 by name, as the dynamic linker would find them."""
    text = proc.run([shutil.which("ldconfig") or LDCONFIG, "-p"], deadline_s=60).stdout
    found: dict[str, Path] = {}
    for name, kind, path in LD_CACHE_LINE.findall(text):
        if "x86-64" in kind:
            found.setdefault(name, Path(path))
    return found


def _roms(program: Path) -> tuple[Path, ...]:
    """QEMU's firmware from the folders where it looks itself: beside a program of /usr/bin or of a build folder."""
    above = program.parent.parent
    folders = (above / "share/qemu", above / "share/seabios", program.parent / "pc-bios", above / "pc-bios")
    found = []
    for name in QEMU_ROMS:
        path = next((place / name for place in folders if (place / name).is_file()), None)
        if path is None:
            raise UserError(
                f"{program} has no firmware {name} in any of {', '.join(map(str, folders))}",
                hint="apt-get install qemu-system-data",
            )
        found.append(path)
    return tuple(found)


def _packages(sources: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """Debian package and version of each path, of those that dpkg knows by any of the names that they have."""
    if shutil.which("dpkg-query") is None:
        return {}
    names = {where: _names(where, path) for where, path in sources.items()}
    asked = sorted({name for several in names.values() for name in several})
    listed = proc.run(["dpkg-query", "-S", *asked], accept=(0, 1), env={"LC_ALL": "C"}, deadline_s=120).stdout
    owner = {path: package for package, path in PACKAGE_LINE.findall(listed)}
    versions = _versions(sorted(set(owner.values())))
    return {
        where: (package.partition(":")[0], versions.get(package, ""))
        for where, several in names.items()
        if (package := next((owner[name] for name in several if name in owner), None)) is not None
    }


def _names(where: str, path: Path) -> tuple[str, ...]:
    """What dpkg may know a file as: /lib may be /usr/lib, and a library's name a link to its version."""
    names = dict.fromkeys((str(path), where, str(path.resolve())))
    return tuple(dict.fromkeys(alias for name in names for alias in (name, name.removeprefix("/usr"), f"/usr{name}")))


def _versions(packages: Sequence[str]) -> dict[str, str]:
    if not packages:
        return {}
    text = proc.run(["dpkg-query", "-W", "-f=${binary:Package} ${Version}\\n", *packages], accept=(0, 1)).stdout
    pairs = _pairs(text.splitlines())
    return {package: pairs.get(package) or pairs.get(package.partition(":")[0], "") for package in packages}


def _pairs(lines: Iterable[str]) -> dict[str, str]:
    return {words[0]: words[1] for words in map(str.split, lines) if len(words) == 2}
