"""Report pages that draw their own figures: one HTML file each, scripts included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from pmlray.study.report.figures.style import Panel, theme
from pmlray.study.report.tables import Table, cell
from pmlray.study.report.vega_bundle import vega_bundle

# Scale of PNG files: twice the size of the SVG, for dense screens and slides.
PNG_SCALE = 2.0


@dataclass(frozen=True)
class Section:
    """Part of a page under its own heading; `text` explains what it shows."""

    key: str
    title: str
    text: str
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()
    items: tuple[tuple[str, str], ...] = ()


def write_page(
    page: Path,
    template: str,
    sections: Sequence[Section],
    pictures: Path,
    **values: Any,
) -> None:
    """Write a page, and each of its figures as an SVG file into the folder `pictures`.

    template: extends page.html.j2; values: its variables, always with `title`, `kind` and
    `identity`. Raises OSError when a folder cannot be written.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    specs: dict[str, Mapping[str, Any]] = {}
    for panel in (panel for section in sections for panel in section.panels):
        specs[panel.key] = panel.spec()
        svg = panel.svg(specs[panel.key])
        (pictures / f"{panel.key}.svg").write_text(svg, encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("pmlray.study.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    html = environment.get_template(template).render(
        sections=sections,
        specs=specs,
        themes={"light": theme(dark=False), "dark": theme(dark=True)},
        bundle=vega_bundle(),
        **values,
    )
    page.write_text(html, encoding="utf-8")


def write_pngs(pictures: Iterable[Path]) -> tuple[Path, ...]:
    """Write each SVG file as a PNG file beside it and return their paths.

    Takes some 0.1 s a figure.
    """
    written = []
    for svg in pictures:
        png = svg.with_suffix(".png")
        png.write_bytes(vl_convert.svg_to_png(svg.read_text(encoding="utf-8"), scale=PNG_SCALE))
        written.append(png)
    return tuple(written)
