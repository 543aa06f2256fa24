"""Checks that trials have the parameters of a design, with the values of its grid."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial

from pmlray.errors import DesignError

Distributions = Mapping[str, BaseDistribution]


def check_suggested(trial: FrozenTrial, own: Distributions) -> None:
    """Raise DesignError, with what to suggest, where a trial lacks a parameter of the design, or
    suggested it with a distribution that lacks some of the grid's values."""
    missing = [name for name in own if name not in trial.params]
    narrow = [n for n in own if n not in missing and not _holds(trial.distributions[n], own[n])]
    if not missing and not narrow:
        return
    found = [f"trial {trial.number} suggested {', '.join(trial.params) or 'nothing'}"]
    found += [f"without {', '.join(missing)}"] if missing else []
    found += [f"{name} from {trial.distributions[name]}" for name in narrow]
    wanted = "; ".join(_call(name, own[name]) for name in (*missing, *narrow))
    raise DesignError(
        f"{', '.join(found)}: it is no run of LawSampler's design. The objective must suggest all"
        f" of {', '.join(own)}, before its work, here: {wanted}"
    )


def check_holds(name: str, given: BaseDistribution, own: Distributions) -> None:
    """Raise DesignError where a parameter of the design is suggested with a distribution that lacks
    some of the grid's values."""
    if name in own and not _holds(given, own[name]):
        raise DesignError(
            f"{name} is suggested from {given}, which lacks values of LawSampler's design; suggest"
            f" it by {_call(name, own[name])}"
        )


def check_none_fixed(design: Container[str], params: Sequence[str]) -> None:
    """Raise DesignError where some of the design's parameters are left to the sampler, and not
    all."""
    fixed = [name for name in params if name not in design]
    if 0 < len(fixed) < len(params):
        raise DesignError(
            f"LawSampler chooses its parameters together, and {', '.join(fixed)} cannot be fixed"
            " beside it: give it a DesignSpace with only the cells and replicates that are wanted"
        )


def _call(name: str, own: BaseDistribution) -> str:
    """Return the call that suggests a parameter of the design."""
    if isinstance(own, IntDistribution):
        log = ", log=True" if own.log else ""
        return f'trial.suggest_int("{name}", {own.low}, {own.high}{log})'
    choices = list(own.choices) if isinstance(own, CategoricalDistribution) else own
    return f'trial.suggest_categorical("{name}", {choices})'


def _holds(given: BaseDistribution, own: BaseDistribution) -> bool:
    """Return whether a distribution has all values that one of the design has."""
    if isinstance(own, IntDistribution) and isinstance(given, IntDistribution):
        return given.step == own.step and given.low <= own.low and own.high <= given.high
    return given == own
