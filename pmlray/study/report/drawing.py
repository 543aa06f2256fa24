"""Drawing by vl-convert, of the draw extra: figures as pictures, and the script of a page.

Without it a report has its numbers, tables and texts, and says what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import altair as alt
from markupsafe import Markup

from pmlray.atomic_files import write_over
from pmlray.config.bases.models import cache_root
from pmlray.errors import INSTALL_DRAW

log = logging.getLogger(__name__)

VEGA_LITE = "v" + ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
# Scale of PNG files: twice the size of the SVG, for dense screens and slides.
PNG_SCALE = 2.0
NOT_DRAWN = (
    "Figures are not drawn, as vl-convert is not installed here. To draw them, run"
    f" {INSTALL_DRAW}, and the same command again, or pmlray report STORE."
)


def can_draw() -> bool:
    """Return whether vl-convert is installed."""
    return find_spec("vl_convert") is not None


def tell_not_drawn() -> None:
    """Log what a report without figures lacks."""
    log.warning("%s", NOT_DRAWN)


def svg_of(spec: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return a figure of Vega-Lite as SVG."""
    import vl_convert

    return vl_convert.vegalite_to_svg(dict(spec), vl_version=VEGA_LITE, config=dict(config))


def png_of(svg: bytes) -> bytes:
    """Return an SVG picture as PNG; takes some 0.1 s."""
    import vl_convert

    return vl_convert.svg_to_png(svg.decode(), scale=PNG_SCALE)


@cache
def vega_bundle() -> Markup:
    """Return Vega, Vega-Lite and Vega-Embed as one script; it is code and must not be escaped.

    Bundling takes one to two CPU seconds, so what was bundled once is read from then on, from the
    user's cache folder.
    """
    import vl_convert

    made_by = version("vl-convert-python")
    file = cache_root() / f"vega-{VEGA_LITE}-vl-convert-{made_by}.js"
    try:
        code = file.read_bytes().decode()
    except (OSError, ValueError):
        code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
        # A page needs no cache.
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_over(file, code.encode())
    return Markup(code.replace("</script", r"<\/script"))
