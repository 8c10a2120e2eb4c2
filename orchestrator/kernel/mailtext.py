"""Mails and mailboxes as lines of text: headers and transfer encodings undone, line numbers kept.

Text is decoded as UTF-8 with ``surrogateescape``, so that a file in any encoding comes back out with the same bytes.
"""

from __future__ import annotations

import email
import email.errors
import email.header
import email.message
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import MailError

MAX_BYTES = 64 * 1024 * 1024  # the largest series on the list is far below; a mailbox of years is a mistake
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# git mailsplit (builtin/mailsplit.c, is_from_line) wants a time and a year too: a commit message may well have a line
# that begins with "From ". `mailbox.mbox` would cut it in two there.
FROM_LINE = re.compile(rb"^From \S+ .*\d\d?:\d\d.*\d{4}\s*$", re.MULTILINE)
HEADER_LINE = re.compile(rb"[!-9;-~]+:")
ARCHIVE_HEADER = re.compile(r"(From|Date|Subject): *(.+)")
REPLY = re.compile(r"^\s*((re|fwd?|aw|sv)\s*:\s*)+", re.IGNORECASE)


@dataclass(frozen=True)
class Message:
    """One mail. ``date`` is ISO (YYYY-MM-DD) where it could be read; fields are "" where the mail does not say."""

    subject: str  # without Re:
    author: str
    date: str
    lines: tuple[str, ...]  # the body
    first_line: int  # number of lines[0] in the file, from 1
    encoded: bool  # the body was base64, quoted-printable or multipart: numbers count decoded lines
    is_mail: bool  # had mail headers
    is_reply: bool  # the subject begins with Re:

    def where(self, index: int) -> str:
        """How to call ``lines[index]`` in an error message."""
        return f"decoded body line {index + 1}" if self.encoded else f"mail line {self.first_line + index}"


def decode(data: bytes) -> str:
    """Bytes to text, losslessly."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The exact inverse of :func:`decode`."""
    return text.encode("utf-8", "surrogateescape")


def text_lines(data: bytes) -> tuple[str, ...]:
    """The lines of ``data`` without their ends; the end of the last line does not begin another one, which would pass
    for an empty context line."""
    return tuple(decode(data).removesuffix("\n").split("\n"))


def read_file(path: Path) -> bytes:
    """The bytes of a mail or patch, line ends as LF. Raises :class:`MailError` if it cannot be read or is too large."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise MailError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise MailError(f"{path} is larger than {MAX_BYTES // 2**20} MiB: not a mail or a patch")
    return unix_lines(data)


def unix_lines(data: bytes) -> bytes:
    """CRLF to LF if *every* line has it: then the mail's transport put it there, not the patch."""
    lines = data.count(b"\n")
    return data.replace(b"\r\n", b"\n") if lines and data.count(b"\r\n") == lines else data


def read_messages(data: bytes) -> tuple[Message, ...]:
    """All mails of a mailbox, or the one mail, archive page or plain text that ``data`` is."""
    starts = [match.start() for match in FROM_LINE.finditer(data)]
    if not starts or data[: starts[0]].strip():
        return (read_message(data, 1),)
    ends = [*starts[1:], len(data)]
    return tuple(
        read_message(data[start:end], data.count(b"\n", 0, start) + 1) for start, end in zip(starts, ends, strict=True)
    )


def read_message(data: bytes, first_line: int) -> Message:
    """One mail, whose first byte stands on line ``first_line`` of its file."""
    head, _, body = data.removeprefix(b"\n").partition(b"\n\n")
    mail = email.message_from_bytes(data) if _has_headers(head) else None
    if mail is None or "from" not in mail or not {"subject", "date", "message-id"} & {key.lower() for key in mail}:
        return _plain_text(text_lines(data), first_line)
    transfer = str(mail.get("content-transfer-encoding", "")).strip().lower()
    encoded = mail.is_multipart() or transfer in ("base64", "quoted-printable")
    text = _decoded_parts(mail) if encoded else body
    return Message(
        subject=strip_reply(_header(mail, "subject")),
        author=_header(mail, "from"),
        date=iso_date(_header(mail, "date")),
        lines=text_lines(unix_lines(text)),
        first_line=first_line + head.count(b"\n") + 2,
        encoded=encoded,
        is_mail=True,
        is_reply=REPLY.match(_header(mail, "subject")) is not None,
    )


def strip_reply(subject: str) -> str:
    """A subject without its Re: and Fwd:, on one line."""
    return " ".join(REPLY.sub("", subject).split())


def iso_date(text: str) -> str:
    """The day in ``text`` as YYYY-MM-DD; ``text`` itself, on one line, if there is none to be read."""
    month = "|".join(MONTHS)
    match = re.search(rf"\b(?P<d>\d{{1,2}}) (?P<m>{month})[a-z]*,? (?P<y>\d{{4}})\b", text, re.IGNORECASE) or re.search(
        rf"\b(?P<m>{month})[a-z]* (?P<d>\d{{1,2}})\b.*?\b(?P<y>\d{{4}})\b", text, re.IGNORECASE
    )
    if match is None:
        return " ".join(text.split())
    return f"{match['y']}-{MONTHS.index(match['m'].lower()) + 1:02}-{int(match['d']):02}"


def _has_headers(head: bytes) -> bool:
    lines = head.split(b"\n")
    if lines[0].startswith(b"From "):
        lines = lines[1:]
    return bool(lines) and all(line[:1] in (b" ", b"\t") or HEADER_LINE.match(line) for line in lines)


def _plain_text(lines: tuple[str, ...], first_line: int) -> Message:
    """A page of a web archive, which writes the subject and a few headers as text; or just a diff."""
    found: dict[str, str] = {}
    for line in lines[:12]:
        match = ARCHIVE_HEADER.fullmatch(line.strip())
        if match:
            found.setdefault(match[1].lower(), match[2])
        elif "subject" not in found and re.match(r"\s*((re|fwd?)\s*:\s*)*\[[^]]*PATCH[^]]*\]", line, re.IGNORECASE):
            found["subject"] = line
    return Message(
        subject=strip_reply(found.get("subject", "")),
        author=found.get("from", ""),
        date=iso_date(found.get("date", "")),
        lines=lines,
        first_line=first_line,
        encoded=False,
        is_mail=False,
        is_reply=REPLY.match(found.get("subject", "")) is not None,
    )


def _header(mail: email.message.Message, name: str) -> str:
    raw = str(mail.get(name, ""))
    try:
        text = str(email.header.make_header(email.header.decode_header(raw)))
    except (email.errors.HeaderParseError, LookupError, ValueError):
        text = raw
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def _decoded_parts(mail: email.message.Message) -> bytes:
    """All text parts, attached patches too, in their order; HTML twins left out."""
    texts = []
    for part in mail.walk():
        if part.get_content_maintype() == "text" and part.get_content_subtype() != "html":
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                texts.append(unix_lines(payload))
    return b"\n".join(texts)
