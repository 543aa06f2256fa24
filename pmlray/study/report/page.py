"""Report pages that draw their own figures: one HTML file each, scripts included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pmlray.atomic_files import write_all_over
from pmlray.errors import StoreError
from pmlray.study.report.drawing import (
    NOT_DRAWN,
    can_draw,
    png_of,
    tell_not_drawn,
    vega_bundle,
)
from pmlray.study.report.figures.style import Panel, theme
from pmlray.study.report.tables import Table, cell


@dataclass(frozen=True)
class Section:
    """Part of a page under its own heading; `text` explains what it shows.

    `part`: the heading in the contents under which it stands, with the sections before and after it
    that have the same.
    """

    key: str
    title: str
    text: str
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()
    items: tuple[tuple[str, str], ...] = ()
    part: str = ""


def page_files(
    page: Path,
    template: str,
    lead: Sequence[Panel],
    sections: Sequence[Section],
    pictures: Path,
    **values: Any,
) -> dict[Path, bytes]:
    """Return the content of a page, and of each of its figures as an SVG file in the folder
    `pictures`, by their paths; without vl-convert of a page that says why it has no figures.

    template: page.html.j2 or what extends it; lead: figures of the first screen; values: its
    variables, always with `title`, `kind`, `identity`, `about`, and of the first screen `parts` and
    the `command` that ends it. Tables without rows are left out, and sections
    without a figure, a table or an item.
    """
    shown = _with_content(sections)
    files: dict[Path, bytes] = {}
    specs: dict[str, dict[str, Any]] = {}
    draws = can_draw()
    if not draws:
        tell_not_drawn()
        lead, shown = (), _with_content([replace(section, panels=()) for section in sections])
    for panel in (*lead, *(panel for section in shown for panel in section.panels)):
        specs[panel.key] = panel.spec()
        files[pictures / f"{panel.key}.svg"] = panel.svg(specs[panel.key]).encode()
    environment = Environment(
        loader=PackageLoader("pmlray.study.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    environment.filters["groupby_part"] = _by_part
    html = environment.get_template(template).render(
        sections=shown,
        lead=lead,
        specs=specs,
        data=shared_data(specs),
        themes={"light": theme(dark=False), "dark": theme(dark=True)},
        bundle=vega_bundle() if draws else "",
        not_drawn="" if draws else NOT_DRAWN,
        **values,
    )
    return {page: html.encode(), **files}


def _with_content(sections: Sequence[Section]) -> list[Section]:
    filled = (replace(s, tables=tuple(table for table in s.tables if table.rows)) for s in sections)
    return [s for s in filled if s.panels or s.tables or s.items]


def _by_part(sections: Sequence[Section]) -> list[tuple[str, list[Section]]]:
    return [(part, list(own)) for part, own in groupby(sections, lambda section: section.part)]


def shared_data(specs: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Return every data set of the figures once, by columns, and leave its name in the figures.

    Figures of the same rows have data sets of the same name, which altair makes of their content.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for spec in specs.values():
        for name, rows in spec["datasets"].items():
            if name not in found:
                columns = list(dict.fromkeys(key for row in rows for key in row))
                found[name] = {
                    "columns": columns,
                    "rows": [[row.get(column) for column in columns] for row in rows],
                }
        spec["datasets"] = list(spec["datasets"])
    return found


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write the files of a report over those of the one before, which stay whole where there is no
    room; StoreError then, with the remedy."""
    try:
        for folder in {path.parent for path in files}:
            folder.mkdir(parents=True, exist_ok=True)
        write_all_over(files)
    except OSError as error:
        raise StoreError(
            f"the report cannot be written ({error}); what is measured is kept, and so is the"
            " report of before, if there was one. Make room on that disk, or mend the permissions"
            " of the folder, and give the same command again, or `pmlray report STORE`"
        ) from error


def write_pngs(pictures: Iterable[Path]) -> None:
    """Write each SVG file as a PNG file beside it, where vl-convert is installed; StoreError where
    they cannot be written."""
    if can_draw():
        write_files({svg.with_suffix(".png"): png_of(svg.read_bytes()) for svg in pictures})
