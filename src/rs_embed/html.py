"""HTML that notebooks show for a result: a title, pictures, facts and remarks. Every text is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from rs_embed.errors import visible

_BOX = (
    "display:flex;flex-wrap:wrap;gap:8px 18px;align-items:flex-start;max-width:880px;padding:12px 14px;"
    "border:1px solid #8886;border-radius:8px;font:13px/1.5 system-ui,sans-serif;text-align:left"
)
_PICTURE = "display:block;border-radius:4px;height:auto;image-rendering:auto"


class Link(NamedTuple):
    """Text with an address."""

    text: str
    href: str


class Picture(NamedTuple):
    """A PNG, or None for an empty frame, with its width on the page and lines below it."""

    png: bytes | None
    width_px: int = 160
    caption: Sequence[str | Link] = ()


Fact = tuple[str, object]
"""A label and its value: a text, a `Link`, or None for a fact that is left out."""


def result_html(
    title: str,
    facts: Iterable[Fact],
    pictures: Sequence[Picture] = (),
    remarks: Sequence[str] = (),
    *,
    gallery: bool = False,
) -> str:
    """Return a box with the facts and the pictures beside them, or below them as a gallery."""
    text = (
        f'<div style="flex:1 1 320px;min-width:0">'
        f'<div style="font-weight:600;font-size:15px;margin-bottom:4px">{_text(title)}</div>'
        f"{_facts(facts)}{_remarks(remarks)}</div>"
    )
    shown = "".join(map(_picture, pictures))
    if gallery:
        below = f'<div style="flex:1 1 100%;display:flex;flex-wrap:wrap;gap:10px">{shown}</div>'
        return f'<div style="{_BOX}">{text}{below if shown else ""}</div>'
    return f'<div style="{_BOX}">{shown}{text}</div>'


def _text(value: object) -> str:
    if isinstance(value, Link):
        address = f'href="{escape(value.href)}" target="_blank" rel="noopener"'
        return f'<a {address} style="color:inherit;text-decoration:underline">{_text(value.text)}</a>'
    return escape(visible(str(value)))


def _facts(facts: Iterable[Fact]) -> str:
    cells = "".join(
        f'<div style="opacity:.65">{_text(label)}</div><div style="overflow-wrap:anywhere">{_text(value)}</div>'
        for label, value in facts
        if value not in (None, "")
    )
    return f'<div style="display:grid;grid-template-columns:max-content 1fr;gap:1px 14px">{cells}</div>'


def _remarks(remarks: Sequence[str]) -> str:
    mark = "margin-top:6px;padding:2px 8px;border-left:3px solid #d08700"
    return "".join(f'<div style="{mark}">{_text(remark)}</div>' for remark in dict.fromkeys(remarks))


def _picture(picture: Picture) -> str:
    lines = "".join(f"<div>{_text(line)}</div>" for line in picture.caption)
    below = f'<div style="font-size:11px;line-height:1.4;margin-top:3px;overflow-wrap:anywhere">{lines}</div>'
    if picture.png is None:
        image = f'<div style="height:{picture.width_px}px;border:1px dashed #8886;box-sizing:border-box"></div>'
    else:
        source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
        image = f'<img src="{source}" width="{picture.width_px}" alt="quicklook" style="{_PICTURE}">'
    return f'<div style="flex:none;width:{picture.width_px}px">{image}{below if lines else ""}</div>'
