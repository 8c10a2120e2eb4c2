"""An arm's patches, whatever form they came in: a quoted mail is recovered against the tree on the way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import QuotedMailError
from orchestrator.experiment import Arm
from orchestrator.kernel import mail
from orchestrator.kernel.series import read_series


@dataclass(frozen=True)
class ReadyArm:
    """An arm whose patches can be applied as they are. ``notes`` say what was done to get them."""

    arm: Arm
    notes: tuple[str, ...]


def make_ready(arm: Arm, tree: Path, folder: Path) -> ReadyArm:
    """Read all of an arm's patches; recover those that a mail only quotes, against ``tree``, into ``folder``.

    Raises :class:`MailError` for a mail that cannot be recovered, :class:`PatchError` for a form that is refused.
    """
    patches: list[Path] = []
    notes: list[str] = []
    for path in arm.patches:
        try:
            read_series([path])
            patches.append(path)
        except QuotedMailError:
            recovered = mail.recover(path, tree)
            folder.mkdir(parents=True, exist_ok=True)
            kept = folder / f"{path.stem}.patch"
            kept.write_bytes(recovered.text)
            patches.append(kept)
            notes.append(f"{path.name}: recovered {recovered.hunks} hunks of {len(recovered.files)} files to {kept}")
    return ReadyArm(dataclasses.replace(arm, patches=tuple(patches)), tuple(notes))
