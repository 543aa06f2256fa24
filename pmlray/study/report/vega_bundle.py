"""Code that draws a page's figures, kept in the user's cache folder."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.metadata import version

import vl_convert
from markupsafe import Markup

from pmlray.atomic_files import write_over
from pmlray.config.bases.models import cache_root
from pmlray.study.report.figures.style import VEGA_LITE


@cache
def vega_bundle() -> Markup:
    """Return Vega, Vega-Lite and Vega-Embed as one script; it is code and must not be escaped.

    It is 0.9 MB of every page, which therefore needs nothing from anywhere. Bundling takes one to
    two CPU seconds, so what was bundled once is read from then on.
    """
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
