"""Every form in which patches come."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import MailError, PatchError
from orchestrator.kernel.patch import check, read_series

DATA = Path(__file__).parents[1] / "data" / "mail"
TREE = DATA / "tree"
FIRST, SECOND, THIRD = (
    "[PATCH 1/3] toy: raise the first level",
    "[PATCH 2/3] toy: raise it again",
    "[PATCH 3/3] toy: say why",
)


def subjects(*paths: Path | str) -> list[str]:
    return [patch.subject for patch in read_series(paths)]


def test_a_mailbox_is_ordered_by_its_numbers_without_cover_letter_and_replies() -> None:
    assert subjects(DATA / "series.mbox") == [FIRST, SECOND, THIRD]
    names = [patch.name for patch in read_series([DATA / "series.mbox"])]
    assert names == ["series.mbox:1/3", "series.mbox:2/3", "series.mbox:3/3"]


def test_a_later_patch_of_a_series_may_change_the_same_line() -> None:
    series = read_series([DATA / "series.mbox"])
    assert check(series, TREE).kind == "applies"
    assert check(series[1:], TREE).kind == "conflicts"


def test_a_part_that_is_missing() -> None:
    with pytest.raises(MailError, match=r"holds 1/3, 3/3; missing 2/3$"):
        read_series([DATA / "gap.mbox"])


def test_a_folder_is_read_by_name_and_a_cover_letter_skipped() -> None:
    assert subjects(DATA / "folder") == [FIRST, SECOND, THIRD]


@pytest.mark.parametrize("path", [DATA / "quilt", DATA / "quilt" / "series"])
def test_a_quilt_series_with_comments(path: Path) -> None:
    series = read_series([path])
    assert [patch.name for patch in series] == ["b.patch", "a.patch"]
    assert check(series, TREE).kind == "applies"


@pytest.mark.parametrize("line", ["b.patch -p0", "b.patch -R", "b.patch -p1 -R"])
def test_quilt_options_that_are_not_supported(tmp_path: Path, line: str) -> None:
    (tmp_path / "series").write_text(f"# first\n{line}\n")
    with pytest.raises(PatchError, match=r"series:2: only -p1 is supported"):
        read_series([tmp_path])


@pytest.mark.parametrize("line", ["../b.patch", "/etc/passwd", "link.patch"])
def test_a_quilt_series_stays_in_its_folder(tmp_path: Path, line: str) -> None:
    (tmp_path / "link.patch").symlink_to(DATA / "toy.patch")
    (tmp_path / "series").write_text(line + "\n")
    with pytest.raises(PatchError, match=r"refused$"):
        read_series([tmp_path / "series"])


@pytest.mark.parametrize("mail", ["base64.eml", "quoted-printable.eml", "crlf.eml"])
def test_mail_encodings_give_the_same_patch(mail: str) -> None:
    (patch,) = read_series([DATA / mail])
    (plain,) = read_series([DATA / "folder" / "0001-part.patch"])
    assert (patch.text, patch.subject) == (plain.text, FIRST)
    assert patch.sha256 == hashlib.sha256(plain.text).hexdigest()
    assert b"signature" not in patch.text and patch.text.endswith(b"\n")


def test_a_patch_names_its_files() -> None:
    (patch,) = read_series([DATA / "toy.patch"])
    assert (patch.name, patch.files) == ("toy.patch", ("drivers/toy/toy.c",))
    assert patch.text.startswith(b"diff --git a/drivers/toy/toy.c")


def test_several_paths_are_read_in_their_order() -> None:
    assert subjects(DATA / "folder", DATA / "toy.patch")[2:] == [THIRD, "[PATCH] toy: tell the caller of stale data"]


def test_a_quoted_mail_must_be_recovered_first() -> None:
    with pytest.raises(MailError, match="quotes a patch") as caught:
        read_series([DATA / "nested.eml"])
    assert caught.value.hint == f"orch patch recover {DATA / 'nested.eml'} --tree TREE --out FILE"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("symlink.patch", r"drivers/toy/link: file mode 120000 is refused"),
        ("dotdot.patch", r"`\.\./outside` leaves the tree"),
        ("binary.patch", r"binary changes are refused"),
    ],
)
def test_refused_forms(name: str, what: str) -> None:
    with pytest.raises(PatchError, match=what):
        read_series([DATA / name])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-a\n+b\n", "Hunk is shorter"),
        ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n+c\n", r"more lines than its header counts: `\+c`"),
        ("--- a/x\n+++ b/x\n@@ -1 +1,2 @@\n-a\n+b\n c\n d\n", "Hunk is longer|longer than expected"),
        ("--- a/x\n+++ b/y\n@@ -1 +1 @@\n-a\n+b\n", "names two files, x and y"),
        ("--- x\n+++ x\n@@ -1 +1 @@\n-a\n+b\n", r"expected a/PATH or b/PATH"),
        ("--- a/.git/config\n+++ b/.git/config\n@@ -1 +1 @@\n-a\n+b\n", r"`\.git/config` is refused"),
        ("--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-a\n+b\n", "neither before nor after"),
        ("diff --git a/x b/x\nold mode 100644\nnew mode 120000\n", "file mode 120000 is refused"),
    ],
)
def test_malformed_diffs(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "x.patch"
    path.write_text(text)
    with pytest.raises(PatchError, match=what):
        read_series([path])


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MailError, match="cannot read"):
        read_series([tmp_path / "none.patch"])
    with pytest.raises(PatchError, match="holds no patch"):
        read_series([tmp_path])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits on top of the toy tree; its configuration would change the form of a diff."""
    path = tmp_path / "repo"
    git = ["git", "-C", str(path), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(path)], check=True)
    (path / "drivers" / "toy").mkdir(parents=True)
    toy = path / "drivers" / "toy" / "toy.c"
    text = (TREE / "drivers" / "toy" / "toy.c").read_text()
    for number, old in enumerate(("", "case 0:", "case 1:")):
        text = text.replace(old, f"case {number}:") if old else text
        toy.write_text(text)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", f"commit {number}"], check=True)
        subprocess.run([*git, "tag", f"v{number}"], check=True)
    for key, value in (("diff.noprefix", "true"), ("format.suffix", ".txt"), ("diff.external", "false")):
        subprocess.run([*git, "config", key, value], check=True)
    return path


def test_a_git_range(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert subjects(f"git:{repository}#v0..v2") == ["[PATCH 1/2] commit 1", "[PATCH 2/2] commit 2"]
    assert check(read_series([f"git:{repository}#v0..v1"]), TREE).kind == "applies"


def test_a_git_range_without_a_commit(repository: Path) -> None:
    with pytest.raises(PatchError, match="holds no commit"):
        read_series([f"git:{repository}#v2..v2"])


@pytest.mark.parametrize("span", ["--output=/tmp/x..y", "-1", "v0", "v0...v1", "v0..v1 v2", "v0..v1;id", ""])
def test_a_git_range_that_is_none(repository: Path, span: str) -> None:
    with pytest.raises(PatchError, match=r"expected git:REPOSITORY#BASE\.\.TIP"):
        read_series([f"git:{repository}#{span}"])
