"""Errors of pmlray: a base class, and one class for each kind of error.

Every message says what was found and what the user can do about it.
"""

# Remedies in messages where torch, what draws, or pandas is missing. pmlray is on no package index,
# so a plain pip install could fetch another project of that name.
INSTALL_TRAIN = "pip install -e '.[train]' in your clone of pmlray"
INSTALL_DRAW = "pip install -e '.[draw]' in your clone of pmlray"
INSTALL_NOTEBOOK = "pip install -e '.[notebook]' in your clone of pmlray"


class PmlrayError(Exception):
    """Base class of all errors that pmlray raises deliberately."""


class SpecError(PmlrayError):
    """Invalid content of a search file, a profile or an option."""


class DataError(PmlrayError):
    """Unusable text to memorise or file of observations."""


class ModelError(PmlrayError):
    """Missing or damaged base model, or one of an unsupported family."""


class FitError(PmlrayError):
    """Observations to which no usable law can be fitted."""


class DesignError(PmlrayError):
    """Failure to choose a pack of design points, for example because the budget is too small."""


class RunError(PmlrayError):
    """Failure of a pack, or of the cluster or server that running it needs."""


class ClusterAway(RunError):
    """Unreachable Ray cluster, or one that refuses this machine's token."""


class TrackerAway(RunError):
    """Unreachable tracking server, or database behind it."""


class StoreError(PmlrayError):
    """Store of observations that cannot be read or written."""


class StoreRefused(StoreError):
    """Store that no attempt may touch: of a newer pmlray, or not the one that its driver sees."""
