"""Errors of pmlray: one base, one class for each thing that can be wrong.

Every message says what was found and what the user can do about it.
"""

# Remedy in messages where torch is missing. pmlray is on no package index, so a plain pip install
# could fetch another project of that name.
INSTALL_TRAIN = "pip install -e '.[train]' in your clone of pmlray"


class PmlrayError(Exception):
    """Base of all errors that pmlray raises on purpose."""


class SpecError(PmlrayError):
    """A search file, a profile or an option holds something that cannot work."""


class DataError(PmlrayError):
    """Text to memorise, or a file of observations, that cannot be used."""


class ModelError(PmlrayError):
    """The base model is missing, damaged or of a family that is not supported."""


class FitError(PmlrayError):
    """No usable law can be fitted to the observations."""


class DesignError(PmlrayError):
    """No pack of design points can be chosen, for example because the budget is too small."""


class RunError(PmlrayError):
    """A pack failed while it ran."""


class TrackerAway(RunError):
    """The tracking server, or the database behind it, cannot be reached."""


class StoreError(PmlrayError):
    """The store of observations cannot be read or written."""
