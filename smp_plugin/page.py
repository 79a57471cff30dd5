"""One HTML page of headings, tables and pictures. It holds everything it shows (pictures as base64), so it can be mailed, and asks the
network for nothing; every name in it is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from converters.files import written_whole

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #26262c; background: #fafaf8; max-width: 1280px;
  margin: 2.5rem auto; padding: 0 1.5rem; box-sizing: border-box; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem } .faint { color: #6e6e76 } .lead { font-size: 1.08rem; max-width: 60rem }
table { border-collapse: collapse } td { overflow-wrap: anywhere }
.wide td { overflow-wrap: break-word } th { font-weight: 600 } td.number { font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem 1.4rem .25rem 0; border-bottom: 1px solid #e4e4de; vertical-align: top }
img { max-width: 100%; border-radius: 4px; display: block } ul { padding-left: 1.2rem } summary { cursor: pointer }
pre { overflow-x: auto; background: #f0f0ea; padding: 1rem; border-radius: 4px; overflow-wrap: normal }
.warning { background: #fff3cf; padding: .5rem .8rem; border-radius: 4px }
.wide { overflow-x: auto; background: linear-gradient(90deg, #fafaf8 40%, #fafaf800) 0 / 2.4rem 100% no-repeat local,
  linear-gradient(270deg, #fafaf8 40%, #fafaf800) 100% / 2.4rem 100% no-repeat local,
  linear-gradient(90deg, #26262c2e, #26262c00) 0 / .8rem 100% no-repeat scroll,
  linear-gradient(270deg, #26262c2e, #26262c00) 100% / .8rem 100% no-repeat scroll } /* a shadow where there is more to scroll to */
.wide > img { min-width: 46rem }
@media (max-width: 600px) { body { margin: 1.2rem auto; padding: 0 .9rem } th, td { padding-right: .8rem } }
"""


class Html(str):
    """Text that is HTML already and stays as it is; any other text is escaped."""

    __slots__ = ()


def escape(text: object) -> Html:
    """For the page."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table; every cell after the first of a row has numbers of equal width. One with a head scrolls by itself where it is too wide."""
    top = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join(
        "<tr>" + "".join(f"<td{' class=number' if n else ''}>{escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return Html(f"<div class=wide><table>{top}{body}</table></div>" if head else f"<table>{body}</table>")


def bullets(texts: Sequence[object]) -> Html:
    """A list."""
    return Html("<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>")


def picture(content: bytes, alt: str, kind: str = "png") -> Html:
    """An image inside of the page; ``kind``: png or jpeg."""
    return Html(f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">')


def write_page(path: Path, title: str, parts: Sequence[str], css: str = CSS) -> None:
    """One HTML file; the parts are HTML, empty ones are left out."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    with written_whole(path) as temporary:
        temporary.write_text(
            f'<!doctype html><html lang="en"><head>{head}<title>{escape(title)}</title><style>{css}</style></head><body>\n'
            + "\n".join(part for part in parts if part)
            + "\n</body></html>\n",
            encoding="utf-8",
        )
