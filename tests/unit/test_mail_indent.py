"""Indentation of an added line from the code in front of it."""

import pytest

from orchestrator.kernel.indent import Layout, columns, shape

CASES = [
    ("body of a function", ["int f(void)", "{"], "return 0;", "\t"),
    ("its brace", ["int f(int a,", "      int b)"], "{", ""),
    ("parameters under the first", ["static int function(struct toy *toy,"], "int b)", "\t\t    "),
    ("arguments in tabs, then blanks", ["{", "\tif (try_async_pf(vcpu, gfn,"], "write))", "\t\t\t "),
    ("hanging parenthesis", ["{", "\tr = call("], "a, b);", "\t\t"),
    ("its end", ["{", "\tr = call(", "\t\ta, b"], ");", "\t"),
    ("as the continuation above", ["{", "\tr = call(a,", "\t\tb,"], "c);", "\t\t"),
    ("under the parenthesis of a condition", ["{", "\tif (a &&"], "b)", "\t    "),
    ("body without brace", ["{", "\tif (a &&", "\t    b)"], "return 1;", "\t\t"),
    ("after it", ["{", "\tif (a)", "\t\treturn 1;"], "return 0;", "\t"),
    ("two heads, one body", ["{", "\tfor (;;)", "\t\tif (a)"], "f();", "\t\t\t"),
    ("after both", ["{", "\tfor (;;)", "\t\tif (a)", "\t\t\tf();"], "g();", "\t"),
    ("else of an if without braces", ["{", "\tif (a)", "\t\tf();"], "else", "\t"),
    ("body of that else", ["{", "\tif (a)", "\t\tf();", "\telse"], "g();", "\t\t"),
    ("else if", ["{", "\tif (a)", "\t\tf();", "\telse if (b)"], "g();", "\t\t"),
    ("after else if", ["{", "\tif (a)", "\t\tf();", "\telse if (b)", "\t\tg();"], "h();", "\t"),
    ("block", ["{", "\tif (a) {"], "f();", "\t\t"),
    ("end of a block", ["{", "\tif (a) {", "\t\tf();"], "} else {", "\t"),
    ("case under switch", ["{", "\tswitch (a) {"], "case 1:", "\t"),
    ("under case", ["{", "\tswitch (a) {", "\tcase 1:"], "f();", "\t\t"),
    ("next case", ["{", "\tswitch (a) {", "\tcase 1:", "\t\tf();", "\t\tbreak;"], "default:", "\t"),
    ("label", ["{", "\tif (a)", "\t\tgoto out;"], "out:", ""),
    ("after a label", ["{", "\tf();", "out:"], "g();", "\t"),
    ("comment", ["{", "\t/*"], "* text", "\t "),
    ("its end, in a block", ["{", "\tif (a) {", "\t\t/**", "\t\t * text"], "*/", "\t\t "),
    ("continued return", ["{", "\treturn a ||"], "b;", "\t       "),
    ("continued assignment", ["{", "\ta = b |"], "c;", "\t\t"),
    ("macro", ["#define F(a)\t\\", "do {\t\\"], "f(a);\t\\", "\t"),
    ("directive", ["{", "\tf();"], "#ifdef CONFIG_X", ""),
    ("both branches open a brace", ["{", "#ifdef A", "\tif (a) {", "#else", "\tif (b) {", "#endif"], "f();", "\t\t"),
    ("list macro", ["{", "\tlist_for_each_entry(a, b, c)"], "f(a);", "\t\t"),
    ("do while", ["{", "\tdo {", "\t\tf();", "\t} while (a);"], "g();", "\t"),
    ("initializer", ["static struct ops ops = {", "\t.open = f,"], ".close = g,", "\t"),
    ("struct", ["struct toy {", "\tint a;"], "int b;", "\t"),
    ("function that returns a struct", ["static struct toy *f(int a)", "{", "\tg();"], "out:", ""),
    ("brackets in strings and comments", ["{", "\tf(\"({[\", '('); /* ( */ // {"], "g();", "\t"),
    ("macro without semicolon, then a blank line", ["DEFINE_TOY(a)", ""], "int b;", ""),
]


@pytest.mark.parametrize(("above", "text", "lead"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_lead(above: list[str], text: str, lead: str) -> None:
    layout = Layout()
    for line in above:
        layout.feed(line)
    assert layout.lead(text) == lead


def test_columns_are_tabs_then_blanks() -> None:
    assert [columns(count) for count in (0, 7, 8, 17)] == ["", " " * 7, "\t", "\t\t "]


@pytest.mark.parametrize(
    ("text", "kind"),
    [("case X:", "case"), ("default:", "case"), ("out:", "label"), ("a::b", "plain"), ("else", "else"), ("}", "}")],
)
def test_shape(text: str, kind: str) -> None:
    assert shape(text) == kind


def test_unbalanced_code_never_fails() -> None:
    layout = Layout()
    for line in (")]}", "} } }", "((", "}", "#endif", "#else", "*/", "else", "{ ( }", "'", '"'):
        layout.feed(line)
        assert layout.lead("x").strip() == ""
