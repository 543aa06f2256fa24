"""pmlray: how much text a LoRA adapter can hold word for word, measured, fitted and used.

`Search` runs and reads a search, `size` answers which rank a set of records needs, `fit_law` fits
the law to measurements (`read_law_data` reads them from files, `law_data` from observations), and
`LawSampler` chooses points in anybody's Optuna study.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmlray.api.search import Search, size
    from pmlray.backends.optuna.sampler import LawSampler
    from pmlray.law import fit_law, law_data, read_law_data
    from pmlray.types import DesignPoint

__version__ = "0.1.0"
__all__ = [
    "DesignPoint",
    "LawSampler",
    "Search",
    "fit_law",
    "law_data",
    "read_law_data",
    "size",
]

# Imported when they are asked for (PEP 562): `import pmlray` loads no framework.
_HOMES = {
    "DesignPoint": "pmlray.types",
    "LawSampler": "pmlray.backends.optuna.sampler",
    "Search": "pmlray.api.search",
    "fit_law": "pmlray.law",
    "law_data": "pmlray.law",
    "read_law_data": "pmlray.law",
    "size": "pmlray.api.search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pmlray' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
