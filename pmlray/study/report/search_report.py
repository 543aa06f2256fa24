"""Report of a search: one HTML file, one JSON file and the figures as SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode

from pmlray.config.secrets import without_credentials
from pmlray.law import LawSummary
from pmlray.study.findings.about import about_runs
from pmlray.study.findings.result import SearchResult
from pmlray.study.report.capacity import capacities, capacity_json
from pmlray.study.report.first_screen import first_screen
from pmlray.study.report.headline import headline
from pmlray.study.report.page import page_files, write_files
from pmlray.study.report.placements import placements_json
from pmlray.study.report.sections import report_sections
from pmlray.types import Observation


# Charts are held against Vega-Lite's schema in tests.
@debug_mode(False)
def write_report(result: SearchResult, folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write report.html, report.json and figures/*.svg, and return the path of report.html.

    facts: values beyond the search's result, all optional: wall_seconds, training_share,
    tracking_uri, store, versions, machine; credentials in addresses are left out. Raises
    StoreError when the folder cannot be written; the files of before are whole then.
    """
    facts = without_credentials(facts)
    page, spec, first = folder / "report.html", result.spec, first_screen(result)
    files = page_files(
        page,
        "report.html.j2",
        first.panels,
        report_sections(result, facts),
        folder / "figures",
        title=spec.name,
        kind="memory law",
        identity=spec.search_id,
        about=about_runs(spec.model, spec.task, spec.describe_places(), result.observations),
        parts=first.parts,
        beside=first.beside,
        command=first.command,
        headline=headline(result),
    )
    stored = json.dumps(report_json(result, facts), indent=1, allow_nan=False)
    write_files({**files, folder / "report.json": f"{stored}\n".encode()})
    return page


def report_json(result: SearchResult, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole report as JSON types; numbers that are not finite become null."""
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
                    "point": f.point.to_json(),
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
                    "law": _known_law(s.law),
                }
                for s in result.snapshots
            ],
            "capacity": capacity_json(capacities(result)),
            **({"placements": placements_json(result)} if result.placements else {}),
            "facts": facts,
        }
    )


def _known_law(law: LawSummary) -> dict[str, Any]:
    """Return a law on the way to the last one, as JSON types: what it was and how well known.

    The rest of `LawSummary.to_json`, such as errors at points held out, takes a second a law.
    """
    return {
        **law.fit.law.to_json(),
        "intervals": {name: list(interval) for name, interval in law.intervals.items()},
        "weights": dict(law.weights),
        "n_obs": law.fit.n_obs,
        "n_censored": law.fit.n_censored,
        "sigma": law.fit.sigma,
        "status": str(law.fit.status),
        "message": law.fit.message,
        "relative_interval": law.relative_interval,
    }


def _compact(o: Observation) -> dict[str, Any]:
    return {
        "run_key": o.run_key,
        "point": o.point.to_json(),
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
            "answered": o.recall.answered,
        },
        "gpu_seconds": o.gpu_seconds,
    }


def _finite(value: Any) -> Any:
    """Convert to JSON types; values without a JSON form become null or text."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
