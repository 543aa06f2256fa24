"""pmlray: how much text a LoRA adapter can hold word for word, measured, fitted and used.

`Search` runs and reads a search, `size` answers which rank a set of records needs, `check_recall`
decodes records with an adapter, `Comparison` sets MemFT beside plain fine-tuning. `fit_law` fits
the law to measurements (`read_law_data` reads them from files, `law_data` from observations), and
`LawSampler` chooses points in anybody's Optuna study; the other names are what these take and give.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pmlray.version import __version__

if TYPE_CHECKING:
    from pmlray.api.comparison import Comparison
    from pmlray.api.recall import check_recall
    from pmlray.api.search import Search
    from pmlray.api.sizing.size import size
    from pmlray.backends.optuna.sampler import LawSampler
    from pmlray.config import ClusterProfile, SearchSpec
    from pmlray.config.compare_spec import CompareSpec
    from pmlray.design import CostModel, DesignSettings, DesignSpace
    from pmlray.law import FitOptions, LawData, LawSummary, fit_law, law_data, read_law_data
    from pmlray.types import DesignPoint, Observation

__all__ = [
    "ClusterProfile",
    "CompareSpec",
    "Comparison",
    "CostModel",
    "DesignPoint",
    "DesignSettings",
    "DesignSpace",
    "FitOptions",
    "LawData",
    "LawSampler",
    "LawSummary",
    "Observation",
    "Search",
    "SearchSpec",
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
    "CostModel": "pmlray.design",
    "DesignPoint": "pmlray.types",
    "DesignSettings": "pmlray.design",
    "DesignSpace": "pmlray.design",
    "FitOptions": "pmlray.law",
    "LawData": "pmlray.law",
    "LawSampler": "pmlray.backends.optuna.sampler",
    "LawSummary": "pmlray.law",
    "Observation": "pmlray.types",
    "Search": "pmlray.api.search",
    "SearchSpec": "pmlray.config",
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
