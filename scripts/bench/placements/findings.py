"""All that a table of runs at several placements says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.bench.placements.orders import more_steps, orders, orders_tuned_early, rates
from scripts.bench.placements.selection import tuned_rows, tuning_rows
from scripts.bench.placements.table import Row
from scripts.bench.placements.worths import bits_by_placement, law_findings, law_points


def findings(rows: Sequence[Row]) -> dict[str, Any]:
    """Return all that the table says so far.

    rows: every run. Raises DataError where no placement's rate is tuned yet.
    """
    tuned = tuned_rows(rows)
    law_points(tuned)
    several = len({row.placement for row in tuned}) > 1
    return {
        "runs": len(rows),
        "at_tuned_rates": len(tuned),
        "gpu_seconds": sum(row.gpu_seconds for row in rows),
        "bits": bits_by_placement(tuned),
        **(law_findings(tuned) if several else {"laws": [], "worths": []}),
        "orders": orders(tuned),
        "orders_tuned_early": orders_tuned_early(tuning_rows(rows)),
        "more_steps": more_steps(rows),
        "rates": rates(rows),
    }
