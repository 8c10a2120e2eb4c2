"""The project's first patch: recovering it again gives the bytes that are kept.

``tree-5.10.262.tar.xz`` holds the four files of Linux 5.10.262 that the patch touches, unchanged.
"""

import re
import tarfile
from pathlib import Path

import pytest

from orchestrator.kernel.indent import Layout, leading
from orchestrator.kernel.mail import recover
from orchestrator.kernel.patch import check, read_series

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "patches" / "hva-retry"
FILES = (
    "arch/x86/kvm/mmu/mmu.c",
    "arch/x86/kvm/mmu/paging_tmpl.h",
    "include/linux/kvm_host.h",
    "virt/kvm/kvm_main.c",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linux")
    with tarfile.open(ROOT / "tests" / "data" / "mail" / "tree-5.10.262.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_recovering_again_gives_the_same_bytes(tree: Path) -> None:
    recovered = recover(FOLDER / "review-mail.txt", tree)
    assert recovered.text == (FOLDER / "v1.patch").read_bytes()
    assert recovered.author == "David Stevens <stevensd@xxxxxxxxxxxx>"
    assert recovered.date == "2021-01-25"
    assert recovered.subject == "[PATCH] KVM: x86/mmu: consider the hva in mmu_notifer retry"
    assert (recovered.files, recovered.hunks) == (FILES, 15)


def test_it_applies_where_its_header_says(tree: Path) -> None:
    found = check(read_series([FOLDER / "v1.patch"]), tree)
    assert (found.kind, found.offsets) == ("applies", ())


def test_no_remark_is_left_in_it() -> None:
    text = (FOLDER / "v1.patch").read_text()
    assert "nits" not in text and "Newline here" not in text and "\n>" not in text
    assert text.count("\n+") - text.count("\n+++ ") == 53
    assert text.count("\n-") - text.count("\n---") == 14


def damaged(line: str, style: str) -> str:
    """A line of a diff as a mailer leaves it; headers have no white space to lose."""
    if re.match(r"diff |index |--- |\+\+\+ |@@ ", line):
        return line
    marker, text = line[:1], line[1:]
    if style == "no indentation":
        return marker.strip() + text.strip()
    if style == "one blank":
        return f"{marker} {text.strip()}".strip() if text[:1].isspace() else line.strip()
    if style == "markers stay":
        return (marker + text.strip()).rstrip()
    return re.sub(r"[ \t]+", " ", line).rstrip()


@pytest.mark.parametrize("quote", ["", "> ", ">>"])
@pytest.mark.parametrize("style", ["no indentation", "one blank", "markers stay", "blanks joined"])
@pytest.mark.parametrize("name", ["hva-retry/v1.patch", "planted/hang.patch", "planted/oops.patch"])
def test_whatever_the_mailer_did_the_patch_comes_out(
    tree: Path, tmp_path: Path, name: str, style: str, quote: str
) -> None:
    text = (ROOT / "patches" / name).read_text()
    diff = text[text.index("diff --git") :]
    lines = [(quote + damaged(line, style)).rstrip() for line in diff.removesuffix("\n").split("\n")]
    mail = tmp_path / "mail.txt"
    mail.write_text("\n".join(lines) + "\n")
    recovered = recover(mail, tree).text.decode()
    assert recovered[recovered.index("diff --git") :] == diff


@pytest.mark.parametrize("patch", sorted(path.name for path in (ROOT / "patches" / "planted").glob("*.patch")))
def test_a_planted_patch_applies_without_offset(tree: Path, patch: str) -> None:
    patches = read_series([ROOT / "patches" / "planted" / patch])
    assert len(patches) == 1 and patches[0].subject.startswith("[PATCH] KVM: x86/mmu: ")
    found = check(patches, tree)
    assert (found.kind, found.offsets) == ("applies", ())


def test_the_comment_patch_moves_no_line() -> None:
    (patch,) = read_series([ROOT / "patches" / "planted" / "comment.patch"])
    assert all(len(hunk.old) == len(hunk.new) for diff in patch.diffs for hunk in diff.hunks)


@pytest.mark.parametrize(("name", "share"), list(zip(FILES, (0.98, 0.92, 0.97, 0.98), strict=True)))
def test_structure_alone_indents_kernel_code_as_it_is(tree: Path, name: str, share: float) -> None:
    """Without the neighbours' help that recovery has; what is missed is mostly free choice of continuation lines."""
    layout, right, count = Layout(), 0, 0
    for line in (tree / name).read_text().split("\n"):
        if line.strip():
            count += 1
            right += layout.lead(line) == leading(line)
        layout.feed(line)
    assert count > 900
    assert right / count >= share
