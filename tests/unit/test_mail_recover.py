"""Damaged mails against a small tree; each error names file, hunk and mail line."""

import shutil
from pathlib import Path

import pytest

from orchestrator.errors import MailError, PatchError
from orchestrator.kernel.mail import recover
from orchestrator.kernel.patch import apply, check, read_series

DATA = Path(__file__).parents[1] / "data" / "mail"
TREE = DATA / "tree"


def diff_of(text: bytes) -> bytes:
    return text[text.index(b"diff --git") :]


@pytest.mark.parametrize(
    ("mail", "author", "date"),
    [
        ("nested.eml", "A. Writer", "2021-01-25"),  # depth 2, remarks at depth 1 and 0, inside hunks
        ("intact.eml", "", ""),  # quoted, white space kept
        ("spaces.eml", "", ""),  # tabs became blanks
        ("toy.patch", '"A. Writer" <writer@example.org>', "2021-01-25"),  # not damaged at all
    ],
)
def test_recovered_as_it_was_written(mail: str, author: str, date: str) -> None:
    recovered = recover(DATA / mail, TREE)
    assert diff_of(recovered.text) == diff_of((DATA / "toy.patch").read_bytes())
    assert (recovered.author, recovered.date) == (author, date)
    assert recovered.subject == "[PATCH] toy: tell the caller of stale data"
    assert (recovered.files, recovered.hunks) == (("drivers/toy/toy.c",), 4)


def test_the_commit_message_is_kept_and_remarks_are_not() -> None:
    text = recover(DATA / "nested.eml", TREE).text.decode()
    head = text[: text.index("---\n")]
    assert "The reader may meet data that is being discarded. Say so.\n\nSigned-off-by: A. Writer" in head
    assert "wrote:" not in text and "remark" not in text and "third" not in text.lower()


ERRORS = {
    "missing-line.eml": "drivers/toy/toy.c: hunk 3 (mail line 52) is incomplete or damaged: the header counts 11 old "
    "and 19 new lines, the mail has 11 and 18 up to here",
    "not-found.eml": "drivers/toy/toy.c: hunk 3 (mail line 37) is not in the tree: `r = toy_copy(toy, data, words);` "
    "does not match tree line 27",
    "surplus.eml": "drivers/toy/toy.c: hunk 4 (mail line 71) has more lines than its header counts, or the "
    "next header is lost",
    "ambiguous.eml": "drivers/toy/toy.c: hunk 1 (mail line 10) is ambiguous: it fits 2 times, at tree line 21, 47",
    "whitespace-only.eml": "drivers/toy/toy.c: hunk 1 (mail line 12): `int level;` changes only white space, and the "
    "mail lost it",
    "wrapped.eml": "mail line 44: remark or the wrapped end of the added line above it? `TOY_KILLABLE);`",
}


@pytest.mark.parametrize("mail", sorted(ERRORS))
def test_what_cannot_be_known_is_an_error(mail: str) -> None:
    with pytest.raises(MailError) as caught:
        recover(DATA / mail, TREE)
    assert caught.value.what == f"{DATA / mail}: {ERRORS[mail]}"


def mail_of(folder: Path, *lines: str, path: str = "drivers/toy/toy.c") -> Path:
    head = [f"> diff --git a/{path} b/{path}", f"> --- a/{path}", f"> +++ b/{path}"]
    file = folder / "mail.txt"
    file.write_text("\n".join([*head, *lines]) + "\n")
    return file


def test_a_context_line_that_lost_its_marker_may_begin_with_minus(tmp_path: Path) -> None:
    mail = mail_of(
        tmp_path,
        "> @@ -51,3 +51,4 @@",
        "> while (bytes) {",
        "> --count;",
        "> + check(toy);",
        "> bytes -= toy_put(toy, address, data, min(bytes, toy->max));",
    )
    text = recover(mail, TREE).text.decode()
    assert "\n \t\t--count;\n+\t\tcheck(toy);\n" in text


def test_line_numbers_become_those_of_the_tree(tmp_path: Path) -> None:
    mail = mail_of(tmp_path, "> @@ -900,2 +900,3 @@", "> int level;", "> + int more;", "> unsigned long flags;")
    assert "@@ -12,2 +12,3 @@\n" in recover(mail, TREE).text.decode()


def test_a_lone_makefile_line_takes_its_neighbours_indentation_or_is_refused(tmp_path: Path) -> None:
    mail = mail_of(tmp_path, "> @@ -1 +1,2 @@", "> obj-y += toy.o", "> +obj-y += more.o", path="drivers/toy/Makefile")
    assert recover(mail, TREE).text.endswith(b" obj-y += toy.o\n+obj-y += more.o\n")
    tree = tmp_path / "tree"
    shutil.copytree(TREE, tree)
    (tree / "drivers/toy/Makefile").write_text("a:\n\tb\n")
    mail = mail_of(tmp_path, "> @@ -1,2 +1,3 @@", "> a:", "> b", "> + c", path="drivers/toy/Makefile")
    with pytest.raises(MailError, match=r"Makefile: hunk 1 \(mail line 7\): `c` lost its indentation"):
        recover(mail, tree)


def test_a_new_file_and_a_missing_end_of_line(tmp_path: Path) -> None:
    lines = ["> diff --git a/drivers/toy/b.h b/drivers/toy/b.h", "> new file mode 100644", "> --- /dev/null"]
    lines += ["> +++ b/drivers/toy/b.h", "> @@ -0,0 +1,3 @@", "> +struct b {", "> + int a;", "> +};"]
    lines += ["> \\ No newline at end of file"]
    mail = tmp_path / "mail.txt"
    mail.write_text("\n".join(lines) + "\n")
    patch = tmp_path / "b.patch"
    patch.write_bytes(recover(mail, TREE).text)
    tree = tmp_path / "tree"
    shutil.copytree(TREE, tree)
    apply(read_series([patch]), tree)
    assert (tree / "drivers/toy/b.h").read_text() == "struct b {\n\tint a;\n};"


def test_a_hunk_that_was_cut_out_is_missed(tmp_path: Path) -> None:
    text = (DATA / "intact.eml").read_text()
    start = text.index("> @@ -4,6")
    mail = tmp_path / "mail.eml"
    mail.write_text(text[:start] + text[text.index("> @@", start + 4) :])
    with pytest.raises(MailError, match=r"hunk 1 \(mail line 15\) says \+2 lines so far, .* make \+0: is one missing"):
        recover(mail, TREE)


def test_the_diffstat_tells_of_a_part_that_was_cut_out(tmp_path: Path) -> None:
    text = (DATA / "intact.eml").read_text()
    mail = tmp_path / "mail.eml"
    mail.write_text(text.replace("> diff", ">  2 files changed, 20 insertions(+), 2 deletions(-)\n>\n> diff", 1))
    with pytest.raises(MailError, match="diffstat counts 2 files, 20 insertions, 2 deletions, the mail holds 1 files"):
        recover(mail, TREE)


@pytest.mark.parametrize("path", ["../outside.c", "/etc/passwd", "drivers/../../x", "drivers/.git/config", "a\\b"])
def test_a_path_out_of_the_tree_is_refused(tmp_path: Path, path: str) -> None:
    mail = mail_of(tmp_path, "> @@ -1 +1,2 @@", "> a", "> + b", path=path)
    with pytest.raises((PatchError, MailError), match=r"refused|header names"):
        recover(mail, TREE)


def test_a_link_in_the_tree_is_not_followed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "drivers").mkdir(parents=True)
    (tree / "drivers" / "toy").symlink_to(TREE / "drivers" / "toy")
    with pytest.raises(PatchError, match="symbolic link"):
        recover(DATA / "nested.eml", tree)


@pytest.mark.parametrize("line", ["rename from drivers/toy/x.c", "GIT binary patch", "old mode 100644"])
def test_a_form_that_cannot_be_recovered_is_refused(tmp_path: Path, line: str) -> None:
    mail = tmp_path / "mail.txt"
    mail.write_text(f"> diff --git a/x.c b/x.c\n> {line}\n> --- a/x.c\n> +++ b/x.c\n> @@ -1 +1 @@\n> -a\n> +b\n")
    with pytest.raises(MailError, match=r"mail line 2: cannot be recovered"):
        recover(mail, TREE)


@pytest.mark.parametrize("text", ["", "just words\n", "> quoted words\n"])
def test_a_mail_without_a_patch(tmp_path: Path, text: str) -> None:
    mail = tmp_path / "mail.txt"
    mail.write_text(text)
    with pytest.raises(MailError, match="holds no patch"):
        recover(mail, TREE)


def test_a_mailbox_is_not_one_mail() -> None:
    with pytest.raises(MailError, match="mailbox of 5 mails"):
        recover(DATA / "series.mbox", TREE)


def test_what_was_recovered_applies(tmp_path: Path) -> None:
    patch = tmp_path / "toy.patch"
    patch.write_bytes(recover(DATA / "nested.eml", TREE).text)
    assert check(read_series([patch]), TREE).kind == "applies"
