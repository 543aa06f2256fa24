"""The report of a search: one HTML file, one JSON file and the figures as SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pmlray.study.report_capacity import capacities, capacity_json
from pmlray.study.report_figures import VEGA_LITE, theme
from pmlray.study.report_headline import headline
from pmlray.study.report_sections import Section, report_sections
from pmlray.study.report_tables import cell, without_credentials
from pmlray.study.result import SearchResult
from pmlray.types import DesignPoint, Observation


def write_report(result: SearchResult, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write report.html, report.json and figures/*.svg, and return the path of report.html.

    facts: what the search's result does not know, all optional: wall_seconds, training_share,
    tracking_uri, store, versions, machine; credentials in addresses are left out. Raises OSError
    when the folder cannot be written.
    """
    facts = without_credentials(facts)
    sections = report_sections(result, facts)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    specs = {}
    for panel in (panel for section in sections for panel in section.panels):
        specs[panel.key] = panel.spec()
        svg = panel.svg(specs[panel.key])
        (figures / f"{panel.key}.svg").write_text(svg, encoding="utf-8")
    stored = json.dumps(report_json(result, facts), indent=1, allow_nan=False)
    (folder / "report.json").write_text(stored + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_render(result, sections, specs), encoding="utf-8")
    return page


def report_json(result: SearchResult, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The whole report for machines; numbers that are not finite become null."""
    return _finite(
        {
            **result.to_json(),
            "name": result.spec.name,
            "observations": [
                {**_compact(o), "certificate": c and asdict(c)}
                for o, c in zip(result.observations, result.certificates, strict=True)
            ],
            "failures": [
                {
                    "run_key": f.run_key,
                    "point": _point(f.point),
                    "round": f.round,
                    "reason": f.reason,
                    "gpu_seconds": f.gpu_seconds,
                }
                for f in result.failures
            ],
            "snapshots": [
                {
                    "round": s.round,
                    "n_observations": s.n_observations,
                    "gpu_seconds": s.gpu_seconds,
                    "law": s.law.to_json(),
                }
                for s in result.snapshots
            ],
            "capacity": capacity_json(capacities(result)),
            "facts": facts,
        }
    )


def _compact(o: Observation) -> dict[str, Any]:
    return {
        "run_key": o.run_key,
        "point": _point(o.point),
        "sequence_id": o.sequence_id,
        "seed": o.seed,
        "method": o.method,
        "phase": o.phase,
        "round": o.round,
        "supervised_tokens": o.supervised_tokens,
        "base_loss": o.base_loss,
        "final_loss": o.final_loss,
        "delta_loss": o.delta_loss,
        "recall": {
            "token": o.recall.token,
            "prefix": o.recall.prefix,
            "exact": o.recall.exact,
            "n_stubborn": o.recall.n_stubborn,
        },
        "gpu_seconds": o.gpu_seconds,
    }


def _point(point: DesignPoint) -> dict[str, int]:
    return {name: getattr(point, name) for name in ("lora_rank", "seq_len", "train_steps")}


def _finite(value: Any) -> Any:
    """JSON types only: what JSON cannot say becomes null or text."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _render(
    result: SearchResult, sections: Sequence[Section], specs: Mapping[str, Mapping[str, Any]]
) -> str:
    environment = Environment(
        loader=PackageLoader("pmlray.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    return environment.get_template("report.html.j2").render(
        name=result.spec.name,
        search_id=result.spec.search_id,
        headline=headline(result),
        sections=sections,
        specs=specs,
        themes={"light": theme(dark=False), "dark": theme(dark=True)},
        bundle=_bundle(),
    )


@cache
def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script; it is code, so it must not be escaped."""
    code = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return Markup(code.replace("</script", r"<\/script"))
