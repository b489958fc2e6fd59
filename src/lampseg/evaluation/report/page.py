"""Sections -> one HTML page that fetches nothing and runs no script but its own."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

import jinja2
from markupsafe import Markup

from lampseg.evaluation.report.parts import Section, ViewerPart


def render_page(*, title: str, summary: str, sections: Sequence[Section]) -> str:
    """The page. Everything that comes from files is escaped; sections without parts are left out.

    A security policy in the page allows the browser no network at all, and no script but those whose checksums it
    lists: a name that slipped through the escaping could still do nothing.
    """
    shown = [section for section in sections if section.parts]
    libraries = [part.library_text for section in shown for part in section.parts if isinstance(part, ViewerPart)]
    scripts = [_asset("report.js"), *([_asset("viewer.js")] if libraries else [])]
    allowed = " ".join(f"'sha256-{_checksum(text)}'" for text in (*scripts, *libraries))
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
    return _template().render(
        title=title, summary=summary, sections=shown, scripts=scripts, style=_asset("report.css"), policy=policy
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lampseg.evaluation.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["safe_json"] = _safe_json
    return environment.get_template("report.html.j2")


def _safe_json(text: str) -> Markup:
    """JSON as the content of a script element, where no `<` may begin a tag or a comment."""
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _asset(name: str) -> str:
    return (resources.files("lampseg.evaluation.report") / "templates" / name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
