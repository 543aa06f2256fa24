"""pmlray: how much text a LoRA adapter can hold word for word, measured, fitted and used.

`Search` runs and reads a search, `size` answers which rank a set of records needs, `check_recall`
decodes records with an adapter, `Comparison` sets MemFT beside plain fine-tuning. `fit_law` fits
the law to measurements (`read_law_data` reads them from files, `law_data` from observations), and
`LawSampler` chooses points in anybody's Optuna study; the other names are what these take and
give. Results are frozen values, with `to_json()` where a command prints the same as JSON.

Example:
    >>> from pmlray import fit_law, read_law_data
    >>> law = fit_law(read_law_data("searches/tables/smollm2_phonebook.csv"))
    >>> law.predict(lora_rank=8, seq_len=640, train_steps=160)
    LawPrediction(delta_loss ... at rank 8, 640 tokens, 160 steps)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pmlray.version import __version__

if TYPE_CHECKING:
    from pmlray.api.comparison import Comparison
    from pmlray.api.comparison_run import ComparisonPlan, ComparisonReport
    from pmlray.api.recall import check_recall
    from pmlray.api.search import Search
    from pmlray.api.search_run import SearchReport
    from pmlray.api.sizing.size import SizingPlan, size
    from pmlray.api.sizing.sized_adapter import SizedAdapter
    from pmlray.backends.optuna.sampler import LawSampler
    from pmlray.config import ClusterProfile, SearchSpec
    from pmlray.config.compare_spec import CompareSpec
    from pmlray.design import CostModel, DesignSettings, DesignSpace
    from pmlray.law import (
        FitOptions,
        LawData,
        LawPrediction,
        LawSummary,
        fit_law,
        law_data,
        read_law_data,
    )
    from pmlray.study.findings.result import SearchResult
    from pmlray.study.sizing.decoded_records import DecodedRecords
    from pmlray.types import DesignPoint, Observation

__all__ = [
    "ClusterProfile",
    "CompareSpec",
    "Comparison",
    "ComparisonPlan",
    "ComparisonReport",
    "CostModel",
    "DecodedRecords",
    "DesignPoint",
    "DesignSettings",
    "DesignSpace",
    "FitOptions",
    "LawData",
    "LawPrediction",
    "LawSampler",
    "LawSummary",
    "Observation",
    "Search",
    "SearchReport",
    "SearchResult",
    "SearchSpec",
    "SizedAdapter",
    "SizingPlan",
    "__version__",
    "check_recall",
    "fit_law",
    "law_data",
    "read_law_data",
    "size",
]

# Imported when they are asked for (PEP 562): `import pmlray` loads no framework.
_HOMES = {
    "ClusterProfile": "pmlray.config",
    "CompareSpec": "pmlray.config.compare_spec",
    "Comparison": "pmlray.api.comparison",
    "ComparisonPlan": "pmlray.api.comparison_run",
    "ComparisonReport": "pmlray.api.comparison_run",
    "CostModel": "pmlray.design",
    "DecodedRecords": "pmlray.study.sizing.decoded_records",
    "DesignPoint": "pmlray.types",
    "DesignSettings": "pmlray.design",
    "DesignSpace": "pmlray.design",
    "FitOptions": "pmlray.law",
    "LawData": "pmlray.law",
    "LawPrediction": "pmlray.law",
    "LawSampler": "pmlray.backends.optuna.sampler",
    "LawSummary": "pmlray.law",
    "Observation": "pmlray.types",
    "Search": "pmlray.api.search",
    "SearchReport": "pmlray.api.search_run",
    "SearchResult": "pmlray.study.findings.result",
    "SearchSpec": "pmlray.config",
    "SizedAdapter": "pmlray.api.sizing.sized_adapter",
    "SizingPlan": "pmlray.api.sizing.size",
    "check_recall": "pmlray.api.recall",
    "fit_law": "pmlray.law",
    "law_data": "pmlray.law",
    "read_law_data": "pmlray.law",
    "size": "pmlray.api.sizing.size",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pmlray' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
