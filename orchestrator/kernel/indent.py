"""How a kernel developer would have indented a line of C, from the code in front of it.

A review mail that lost its white space says what an added line is, but not where it begins. This module follows the C
code up to that line (braces, parentheses, comments, statements without braces, macros, preprocessor branches) and says
how the kernel indents what comes next: tabs of eight columns, ``case`` under ``switch``, labels in column 0,
continuation lines under the first argument (Documentation/process/coding-style.rst, sections 1 and 2; v5.10). What the
surrounding code really does wins over the rule: a line takes the indentation of its nearest sibling.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field

TAB_COLUMNS = 8
HEADS = {"if", "for", "while", "switch"}
AGGREGATES = {"struct", "union", "enum"}
LABEL = re.compile(r"(?!default\b)[A-Za-z_]\w*\s*:(?!:)")
CASE = re.compile(r"(case\b|default\s*:)")
ELSE = re.compile(r"else\b")
TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<comment>/\*.*?(?:\*/|$)) | (?P<line_comment>//.*) |
        (?P<string>"(?:\\.|[^"\\])*"? | '(?:\\.|[^'\\])*'?) | (?P<word>[A-Za-z_]\w*) | (?P<number>\d[\w.]*) |
        (?P<operator><<=|>>=|\.\.\.|->|\+\+|--|<<|>>|[-+*/%&|^=!<>]=|&&|\|\||.)""",
    re.VERBOSE,
)


def leading(line: str) -> str:
    """The white space in front of ``line``."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal with tab stops every eight columns."""
    return len(text.expandtabs(TAB_COLUMNS))


def columns(count: int) -> str:
    """White space ``count`` columns wide: tabs as far as they go, then blanks (the kernel's alignment)."""
    return "\t" * (count // TAB_COLUMNS) + " " * (count % TAB_COLUMNS)


def shape(text: str) -> str:
    """Kind of line, as far as indentation cares: two lines of one kind at one place are indented alike."""
    text = text.strip()
    for kind, pattern in (("case", CASE), ("label", LABEL), ("else", ELSE)):
        if pattern.match(text):
            return kind
    return text[0] if text[:1] in set("#{})]*") else "plain"


@dataclass
class _Statement:
    """A statement that has begun and not ended."""

    lead: str  # of its first line
    word: str  # its first word
    words: set[str] = field(default_factory=set)
    assigned: bool = False
    continued: str | None = None  # lead of its last continuation line outside parentheses


@dataclass
class _Frame:
    """An open bracket, or the file itself, and what goes on directly inside it."""

    kind: str  # file, paren, block, switch, aggregate, list
    lead: str = ""  # of the statement (braces) or the line (parentheses) that opened it
    column: int = 0  # just after the bracket
    owner: str = ""  # the word whose body this is: if, else, do, …
    hanging: bool = False  # the bracket was the last thing on its line
    body: str | None = None  # lead of the last line that began directly inside
    case: str | None = None  # lead of the last case label
    statement: _Statement | None = None
    pending: list[tuple[str, str]] = field(default_factory=list)  # (lead, word) of if (…) without a body so far
    ifs: list[str] = field(default_factory=list)  # leads of the ifs that an else may now follow


class Layout:
    """Follows C code line by line; :meth:`lead` says how the next line would be indented. It never fails: code that it
    does not understand gets the indentation of its neighbours."""

    def __init__(self, base: str = "") -> None:
        self._frames = [_Frame("file", body=base)]
        self._comment: str | None = None
        self._macro: Layout | None = None
        self._branches: list[list[_Frame]] = []
        self._line_lead = ""
        self._last_token = ""

    def lead(self, text: str) -> str:
        """Leading white space for a line whose other text is ``text``."""
        text = text.strip()
        if self._macro is not None:
            return self._macro.lead(text)
        if self._comment is not None:
            return self._comment
        top = self._frames[-1]
        if not text or text.startswith("#"):
            return ""
        if top.kind == "paren":
            return self._lead_in_parentheses(top, text)
        if text.startswith("}"):
            return top.lead
        if top.statement is not None:
            return self._lead_of_continuation(top, top.statement, text)
        return self._lead_of_statement(top, text)

    def _lead_in_parentheses(self, top: _Frame, text: str) -> str:
        if top.hanging and text[0] in ")]":
            return top.lead
        if top.body is not None:
            return top.body
        return top.lead + "\t" if top.hanging else columns(top.column)

    def _lead_of_continuation(self, top: _Frame, statement: _Statement, text: str) -> str:
        if text.startswith("{"):
            return statement.lead
        if statement.continued is not None:
            return statement.continued
        if top.kind == "file" and not statement.assigned:
            return statement.lead  # the type stands on a line of its own above the function's name
        if statement.word == "return":
            return columns(width(statement.lead) + len("return "))
        return statement.lead + "\t"

    def _lead_of_statement(self, top: _Frame, text: str) -> str:
        kind = shape(text)
        if kind == "else" and top.ifs:
            return top.ifs[-1]
        if kind == "case" and top.kind == "switch":
            return top.lead if top.case is None else top.case
        if kind == "label" and top.kind in ("block", "switch"):
            return ""
        if top.pending:
            return top.pending[-1][0] + ("" if text.startswith("{") else "\t")
        return top.lead + "\t" if top.body is None else top.body

    def feed(self, line: str) -> None:
        """Take in ``line`` (with its white space, without its end)."""
        line = line.rstrip()
        if self._macro is not None:
            self._macro.feed(line.removesuffix("\\"))
            if not line.endswith("\\"):
                self._macro = None
        elif self._comment is None and line.lstrip().startswith("#"):
            self._directive(line)
        elif not line:
            self._frames[-1].statement = None  # no statement goes on after a blank line
        else:
            start = self._leave_comment(line)
            if start is not None:
                self._code(line, start)

    def _leave_comment(self, line: str) -> int | None:
        """Where code begins on ``line``; None if all of it is comment."""
        if self._comment is None:
            return 0
        self._comment = leading(line)
        end = line.find("*/")
        if end < 0:
            return None
        self._comment = None
        return end + 2 if line[end + 2 :].strip() else None

    def _directive(self, line: str) -> None:
        """Both branches of an #if begin in the same state; the last one's end counts."""
        word = line.strip()[1:].strip()
        if word.startswith("if"):
            self._branches.append(copy.deepcopy(self._frames))
        elif word.startswith("el") and self._branches:
            self._frames = copy.deepcopy(self._branches[-1])
        elif word.startswith("endif") and self._branches:
            self._branches.pop()
        if line.endswith("\\"):
            self._macro = Layout("\t")

    def _code(self, line: str, start: int) -> None:
        self._line_lead = leading(line)
        text = line.strip()
        if start == 0:
            self._begin_line(text)
        if line.startswith("}"):
            del self._frames[2:]  # a brace in column 0 ends a function, whatever was misread in it
        skip = 0
        top = self._frames[-1]
        if top.kind in ("block", "switch") and top.statement is None and shape(text) == "label":
            skip = line.index(":") + 1
        for match in TOKEN.finditer(line, max(start, skip)):
            self._token(match, line)
        if self._last_token in ("(", "[") and self._frames[-1].kind == "paren":
            self._frames[-1].hanging = True

    def _begin_line(self, text: str) -> None:
        """Note where this line begins, as the measure for its next sibling."""
        top = self._frames[-1]
        kind = shape(text)
        if top.kind == "paren":
            if kind not in (")", "]"):
                top.body = self._line_lead
        elif top.statement is not None:
            if kind not in "{}":
                top.statement.continued = self._line_lead
        elif kind == "case":
            top.case, top.body = self._line_lead, self._line_lead + "\t"
        elif kind in ("plain", "*", "else") and not top.pending:
            top.body = self._line_lead

    def _token(self, match: re.Match[str], line: str) -> None:
        kind, text = match.lastgroup or "", match.group()
        if kind == "comment" and not (text.endswith("*/") and len(text) > 3):
            before = line[: match.start()]
            self._comment = before + " " if not before.strip() else columns(width(before) + 1)
        if kind in ("space", "comment", "line_comment"):
            return
        column = width(line[: match.end()])
        if kind == "word":
            self._word(text)
        elif text in ("(", "["):
            self._start_statement("")
            self._frames.append(_Frame("paren", lead=self._line_lead, column=column))
        elif text in (")", "]"):
            self._close_parenthesis()
        elif text == "{":
            self._open_brace()
        elif text == "}":
            self._close_brace()
        else:
            self._operator(text)
        self._last_token = text

    def _start_statement(self, word: str) -> None:
        top = self._frames[-1]
        if top.kind != "paren" and top.statement is None:
            top.statement = _Statement(self._line_lead, word)

    def _word(self, word: str) -> None:
        top = self._frames[-1]
        if top.kind == "paren":
            return
        if top.statement is None and word in ("else", "do"):
            top.pending.append((self._line_lead, word))
            return
        self._start_statement(word)
        if top.statement is not None:
            top.statement.words.add(word)

    def _close_parenthesis(self) -> None:
        if self._frames[-1].kind != "paren":
            return
        self._frames.pop()
        top = self._frames[-1]
        statement = top.statement
        if top.kind == "paren" or statement is None:
            return
        if statement.word in HEADS or ("for_each" in statement.word and statement.words == {statement.word}):
            if top.pending and top.pending[-1] == (self._line_lead, "else"):
                top.pending.pop()  # else if (…) is one head
            top.pending.append((statement.lead, statement.word))
            top.statement = None

    def _open_brace(self) -> None:
        top = self._frames[-1]
        if top.kind == "paren":
            kind = "block" if self._last_token == "(" else "list"
            self._frames.append(_Frame(kind, lead=self._line_lead))
        elif top.statement is None and top.pending:
            lead, word = top.pending[-1]
            self._frames.append(_Frame("switch" if word == "switch" else "block", lead=lead, owner=word))
        else:
            statement = top.statement or _Statement(self._line_lead, "{")
            kind = "block"
            if statement.assigned or top.kind == "list":
                kind = "list"
            elif statement.words & AGGREGATES and self._last_token != ")":
                kind = "list" if "enum" in statement.words else "aggregate"
            self._frames.append(_Frame(kind, lead=statement.lead))

    def _close_brace(self) -> None:
        while len(self._frames) > 1 and self._frames[-1].kind == "paren":
            self._frames.pop()
        if len(self._frames) == 1:
            return
        closed = self._frames.pop()
        top = self._frames[-1]
        if top.kind == "paren" or closed.kind in ("list", "aggregate"):
            return
        if closed.owner == "do":
            top.pending.pop()
            top.statement = _Statement(closed.lead, "do")
            return
        self._end_statement(top)

    def _end_statement(self, top: _Frame) -> None:
        """The statement is complete, and with it every head that waited for its body."""
        top.ifs = [lead for lead, word in top.pending if word == "if"]
        top.pending.clear()
        top.statement = None

    def _operator(self, text: str) -> None:
        top = self._frames[-1]
        if top.kind == "paren":
            return
        if text == ";":
            self._end_statement(top)
        elif self._ends_label_or_element(top, text):
            top.statement = None
        else:
            self._start_statement("")
            if top.statement is not None and text == "=":
                top.statement.assigned = True

    @staticmethod
    def _ends_label_or_element(top: _Frame, text: str) -> bool:
        if text == ",":
            return top.kind == "list"
        return text == ":" and top.statement is not None and top.statement.word in ("case", "default")
