"""Whatever the mail says: a patch, or an error of ours that names the trouble; never a path outside the tree."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import MailError, PatchError
from orchestrator.kernel.mail import recover
from orchestrator.kernel.mailtext import decode, encode, read_messages
from orchestrator.kernel.patch import check, read_series

DATA = Path(__file__).parents[1] / "data" / "mail"
TREE = DATA / "tree"
MAILS = sorted(path for path in DATA.iterdir() if path.suffix in (".eml", ".mbox", ".patch"))
SEEDS = [path.read_bytes() for path in MAILS]
WORDS = [
    b"diff --git a/x b/x\n",
    b"--- a/x\n",
    b"+++ b/../x\n",
    b"@@ -1 +1 @@\n",
    b"> ",
    b"+",
    b"-",
    b"\\ No newline\n",
]
WORDS += [
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"From x 10:00:00 2021\n",
    b"rename from ",
    b"new file mode 120000\n",
    b"--\n",
]
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good mail with pieces cut out, doubled, and put in."""
    data = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 60)))
        middle = draw(st.one_of(st.sampled_from(WORDS), st.binary(max_size=12), st.just(data[start:end] * 2)))
        data = data[:start] + middle + data[end:]
    return data


def see(path: Path) -> None:
    """Read and recover; only our own errors may come out, and only files of the tree may be named."""
    try:
        recovered = recover(path, TREE)
    except (MailError, PatchError) as error:
        assert error.what
    else:
        assert all(".." not in Path(name).parts and not name.startswith("/") for name in recovered.files)
        assert re.search(rb"^diff --git ", recovered.text, re.MULTILINE)
    try:
        patches = read_series([path])
        check(patches, TREE)
    except (MailError, PatchError) as error:
        assert error.what
    else:
        assert patches and all(".." not in Path(name).parts for patch in patches for name in patch.files)


@FUZZ
@given(data=mutated())
def test_damaged_mails(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mail.eml"
    path.write_bytes(data)
    see(path)


@FUZZ
@given(data=st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=20)), max_size=30).map(b"".join))
def test_arbitrary_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mail.eml"
    path.write_bytes(data)
    see(path)


@pytest.mark.parametrize("seed", range(len(MAILS)), ids=[path.name for path in MAILS])
def test_every_truncation(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "mail.eml"
    for end in range(0, len(SEEDS[seed]), 37):
        path.write_bytes(SEEDS[seed][:end])
        see(path)


@FUZZ
@given(data=st.binary(max_size=200))
def test_text_is_lossless(data: bytes) -> None:
    assert encode(decode(data)) == data
    assert read_messages(data)


@FUZZ
@given(st.data())
def test_a_truncated_patch_never_restores_to_another(tmp_path: Path, data: st.DataObject) -> None:
    """Leave one line out of the damaged mail: the same patch (a remark went), or an error; never another patch."""
    lines = (DATA / "nested.eml").read_bytes().split(b"\n")
    first = next(index for index, line in enumerate(lines) if b"@@ -" in line)
    gone = data.draw(st.integers(first, len(lines) - 1))
    path = tmp_path / "mail.eml"
    path.write_bytes(b"\n".join(lines[:gone] + lines[gone + 1 :]))
    whole = (DATA / "toy.patch").read_bytes()
    try:
        recovered = recover(path, TREE).text
    except MailError as error:
        assert "drivers/toy/toy.c: hunk" in error.what or "mail line" in error.what
    else:
        assert recovered[recovered.index(b"diff --git") :] == whole[whole.index(b"diff --git") :]
