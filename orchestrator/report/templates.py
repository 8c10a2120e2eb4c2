"""How every HTML file is made of its template: nothing foreign reaches it unescaped, or with its control codes.

Everything that comes from a mail, a patch, a config, a kernel or a guest goes through Jinja's autoescape and, by
``finalize``, through :func:`~orchestrator.report.style.clean`; only our own SVG and CSS are marked as safe.
"""

from __future__ import annotations

import jinja2
from markupsafe import Markup

from orchestrator.report import palette
from orchestrator.report.style import clean

OWN = "orchestrator.report"


def environment(package: str = OWN) -> jinja2.Environment:
    """Templates and style sheets of ``package``, and behind these the report's own."""
    loaders = [jinja2.PackageLoader(name, "") for name in dict.fromkeys((package, OWN))]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def stylesheet(found: jinja2.Environment, *names: str) -> Markup:
    """These files of ours in one, with the palette."""
    assert found.loader is not None
    return Markup("".join(found.loader.get_source(found, name)[0] for name in names) + palette.css())


def _finalize(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
