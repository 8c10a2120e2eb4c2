"""One commit of a git repository as a tarball. Nothing is checked out and no hook or helper of the repository runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator import proc
from orchestrator.errors import SourceError
from orchestrator.experiment import GitSource

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
DEADLINE_S = 1800.0
# No question on the terminal, and none of the transports (ext::) that run a command of the address.
ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh", "LC_ALL": "C"}
# Set by a hook or an alias that started us, these would redirect git to another repository.
UNSET = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")


def resolve(source: GitSource) -> str:
    """The commit that ``source.ref`` names now: any revision of a local folder, a tag, branch or full id of a remote.

    Raises :class:`SourceError` if there is none, :class:`CommandError` if the repository cannot be reached.
    """
    _refuse_options(source)
    folder = Path(source.repository)
    if folder.is_dir():
        revision = f"{source.ref}^{{commit}}"
        argv: list[str | Path] = ["-C", folder, "rev-parse", "--verify", "--quiet", "--end-of-options", revision]
        found = _git(argv, accept=(0, 1)).strip()
        if not COMMIT.fullmatch(found):
            raise SourceError(f"{folder} has no commit {source.ref}")
        return found
    if COMMIT.fullmatch(source.ref):
        return source.ref
    lines = _git(["ls-remote", "--quiet", "--", source.repository, source.ref, f"{source.ref}^{{}}"]).splitlines()
    refs = {name: commit for commit, _, name in (line.partition("\t") for line in lines) if COMMIT.fullmatch(commit)}
    # A peeled tag is the commit; a tag object is not. Tags come before branches, as for git.
    for name in (f"refs/tags/{source.ref}^{{}}", f"refs/tags/{source.ref}", f"refs/heads/{source.ref}", source.ref):
        if name in refs:
            return refs[name]
    raise SourceError(f"{source.repository} has no tag or branch {source.ref} (a full commit id works, too)")


def archive(source: GitSource, commit: str, scratch: Path) -> Path:
    """Write the tree of ``commit`` to a tar file in ``scratch``; a remote is fetched one commit deep."""
    _refuse_options(source)
    tar = scratch / "tree.tar"
    repository = Path(source.repository)
    if not repository.is_dir():
        repository = scratch / "repository.git"
        _git(["init", "--quiet", "--bare", repository])
        _git(["-C", repository, "fetch", "--quiet", "--depth=1", "--no-tags", "--", source.repository, source.ref])
        found = _git(["-C", repository, "rev-parse", "--verify", "FETCH_HEAD^{commit}"]).strip()
        if found != commit:
            raise SourceError(f"{source.ref} moved from {commit[:12]} to {found[:12]} while it was fetched")
    _git(["-C", repository, "archive", "--format=tar", f"--output={tar}", commit])
    return tar


def _git(argv: Sequence[str | Path], accept: tuple[int, ...] = (0,)) -> str:
    unset = [word for name in UNSET for word in ("-u", name)]
    command = ["env", *unset, proc.require("git", "git"), *argv]
    return proc.run(command, deadline_s=DEADLINE_S, env=ENVIRONMENT, accept=accept).stdout


def _refuse_options(source: GitSource) -> None:
    for word in (source.repository, source.ref):
        if word.startswith("-") or "::" in word:
            raise SourceError(f"{word}: not a repository address or ref")
