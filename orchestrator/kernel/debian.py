"""Debian ``linux-source-X`` packages, from the mirror that this machine's own apt uses.

apt does the transport, the proxies and the signature check, in folders of our own; the machine's configuration is read
and never written. No mirror is named here: the host of a *sibling* suite is taken, since one archive holds all
releases (``bullseye-security`` is served where ``bookworm-security`` is). Works without root.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator import proc
from orchestrator.errors import CommandError, SourceError
from orchestrator.experiment import DebianSource

# Debian's keys, old releases' included; from the package of the same name.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SECURITY = "security"
# Suites that live in the main archive beside the release itself.
MAIN_KINDS = {"", "updates", "backports", "proposed-updates"}
UPDATE_DEADLINE_S = 300.0
DOWNLOAD_DEADLINE_S = 1800.0

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One configured repository: address, suite, and its ``Signed-By`` (empty if it has none)."""

    uri: str
    suite: str
    signed_by: str


@dataclass(frozen=True)
class Package:
    """A downloaded package; apt checked it against the signed index."""

    path: Path
    version: str


def configured(apt: Path = Path("/etc/apt")) -> tuple[Entry, ...]:
    """The enabled binary repositories of an apt folder, in the order in which apt reads them (sources.list(5))."""
    entries: list[Entry] = []
    files = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".list":
            entries.extend(_one_line(text))
        elif file.suffix == ".sources":
            entries.extend(_deb822(text))
    return tuple(entries)


def mirrors(suite: str, entries: Iterable[Entry], codename: str) -> tuple[str, ...]:
    """Addresses that should serve ``suite``, the likeliest first; ``codename`` is the machine's own release.

    An entry counts if its suite is of the same kind (security, or the main archive), its ``Signed-By``, if any, is
    Debian's keyring, and it looks like Debian's archive by keyring, path or release. Third parties name suites after
    Debian's, too: the signature decides in the end. Raises :class:`SourceError` if there is none.
    """
    wanted = _kind(suite)
    ranked: list[tuple[int, str]] = []
    for entry in entries:
        trusted = "debian-archive" in entry.signed_by
        if _kind(entry.suite) != wanted or (entry.signed_by and not trusted):
            continue
        named = re.search(r"/debian(?:-security|-archive)?/?$", entry.uri) is not None
        ours = re.split("[-/]", entry.suite)[0] in {codename, re.split("[-/]", suite)[0]}
        if trusted or named or ours:
            ranked.append((-(2 * (entry.suite == suite) + named + trusted), entry.uri))
    if not ranked:
        what = "security updates" if wanted == SECURITY else "a Debian release"
        raise SourceError(
            f"this machine's apt has no repository of {what}, so there is no mirror to ask for {suite}",
            hint="see /etc/apt/sources.list and /etc/apt/sources.list.d, or give the experiment another kernel source",
        )
    return tuple(dict.fromkeys(uri for _, uri in sorted(ranked, key=lambda pair: pair[0])))


def download(source: DebianSource, folder: Path, say: Callable[[str], None], apt: Path = Path("/etc/apt")) -> Package:
    """Fetch the package into ``folder`` (empty, ours). Raises :class:`SourceError` that says why each mirror failed."""
    return _first_mirror(source, folder, say, apt, lambda uri, own: _download_from(uri, source, own))


def offered_sha256(source: DebianSource, folder: Path, say: Callable[[str], None], apt: Path = Path("/etc/apt")) -> str:
    """SHA-256 of the package that the suite offers now, from its signed index: a small download. Raises as above."""
    return _first_mirror(source, folder, say, apt, lambda uri, own: _ask(uri, source, own))


def _first_mirror(
    source: DebianSource, folder: Path, say: Callable[[str], None], apt: Path, work: Callable[[str, Path], T]
) -> T:
    """What ``work`` returns for the first mirror with which it does not fail, in a folder of its own for each."""
    if not KEYRING.is_file():
        raise SourceError(f"{KEYRING} is missing", hint="apt-get install debian-archive-keyring")
    failures: list[str] = []
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    for number, uri in enumerate(mirrors(source.suite, configured(apt), codename)):
        say(f"asking the apt mirror for {source.package} of {source.suite}")
        try:
            return work(uri, folder / str(number))
        except CommandError as error:
            failures.append(f"{uri}: {error.what}")
    raise SourceError(f"{source.package} of {source.suite}: " + "; ".join(failures))


def unpack(package: Package, name: str, folder: Path, say: Callable[[str], None]) -> None:
    """Put the kernel tree of a ``linux-source-X`` package directly into ``folder``.

    ``dpkg-deb`` and ``tar`` are fine here, and four times as fast as Python's: the bytes carry Debian's signature.
    """
    say(f"unpacking {name} {package.version}")
    content = package.path.parent / "content"
    proc.run([proc.require("dpkg-deb", "dpkg"), "-x", package.path, content], deadline_s=300)
    found = sorted(content.glob(f"usr/src/{name}.tar.*"))
    if not found:
        raise SourceError(f"{package.path.name} holds no usr/src/{name}.tar.*")
    proc.run(
        [proc.require("tar", "tar"), "-x", "--strip-components=1", "--no-same-owner", "-f", found[0], "-C", folder],
        deadline_s=900,
    )


def _update(uri: str, source: DebianSource, folder: Path) -> list[str | Path]:
    """Fetch the suite's index into ``folder``; returns the ``apt-get`` that works with it."""
    private = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial", "etc"):
        (private / name).mkdir(parents=True)
    sources = private / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {uri} {source.suite} main\n", encoding="utf-8")
    apt_get: list[str | Path] = [proc.require("apt-get", "apt"), *_options(private, sources)]
    proc.run([*apt_get, "update"], deadline_s=UPDATE_DEADLINE_S, cwd=folder, env={"LC_ALL": "C"})
    return apt_get


def _ask(uri: str, source: DebianSource, folder: Path) -> str:
    apt_get = _update(uri, source, folder)
    argv = [*apt_get, "--print-uris", "download", source.package]
    text = proc.run(argv, deadline_s=UPDATE_DEADLINE_S, cwd=folder, env={"LC_ALL": "C"}).stdout
    found = re.findall(r"^'.*' \S+ \d+ SHA256:([0-9a-f]{64})$", text, re.MULTILINE)
    if len(found) != 1:
        raise SourceError(f"the index of {source.suite} names {len(found)} SHA-256 for {source.package}")
    return str(found[0])


def _download_from(uri: str, source: DebianSource, folder: Path) -> Package:
    apt_get = _update(uri, source, folder)
    proc.run([*apt_get, "download", source.package], deadline_s=DOWNLOAD_DEADLINE_S, cwd=folder, env={"LC_ALL": "C"})
    packages = sorted(folder.glob("*.deb"))
    if len(packages) != 1:
        raise SourceError(f"apt-get download left {len(packages)} packages for {source.package}")
    version = proc.run([proc.require("dpkg-deb", "dpkg"), "-f", packages[0], "Version"]).stdout.strip()
    return Package(packages[0], version)


def _options(private: Path, sources: Path) -> list[str]:
    """apt's options for folders of our own; proxies and credentials still come from the machine's apt.conf."""
    options = {
        "Dir::Etc::sourcelist": str(sources),
        "Dir::Etc::sourceparts": "/dev/null",
        # A pin of the machine (release a=stable) would hide the package of an older suite.
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State::lists": f"{private}/lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": f"{private}/cache",
        # The folder belongs to us and not to the user _apt.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::AllowInsecureRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
        # Without this a failed index is only a warning, and the download then fails with a message that misleads.
        "APT::Update::Error-Mode": "any",
    }
    return ["-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]


def _kind(suite: str) -> str:
    """``security``, ``main`` (the release, its updates and backports), or the suffix of some other suite."""
    name, slash, rest = suite.partition("/")
    if slash:  # bullseye and older: "buster/updates" is the security suite.
        return SECURITY if rest == "updates" else suite
    _, _, suffix = name.partition("-")
    return "main" if suffix in MAIN_KINDS else suffix


def _one_line(text: str) -> Iterator[Entry]:
    for line in text.splitlines():
        match = re.match(
            r"deb(?:\s+\[(?P<options>[^]]*)\])?\s+(?P<uri>\S+)\s+(?P<suite>\S+)", line.split("#")[0].strip()
        )
        if match:
            signed = re.search(r"signed-by=(\S+)", match["options"] or "", re.IGNORECASE)
            yield Entry(match["uri"], match["suite"], signed[1] if signed else "")


def _deb822(text: str) -> Iterator[Entry]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')}\n{line.strip()}"
            else:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Entry(uri, suite, fields.get("signed-by", ""))
