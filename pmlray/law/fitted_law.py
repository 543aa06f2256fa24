"""Fit of the law to points, judged at its targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from pmlray.law.data import LawData
from pmlray.law.fitting.averaging import average_laws, default_forms
from pmlray.law.fitting.fit import FitOptions
from pmlray.law.forms.protocol import Form
from pmlray.law.summary import LawSummary
from pmlray.law.target_predictions import Target, corners, predict_targets
from pmlray.law.validation.checklist import LEVEL, checklist
from pmlray.law.validation.diagnostics import mape, r2
from pmlray.law.validation.intervals import param_intervals
from pmlray.law.validation.judgement import judge
from pmlray.law.validation.residuals import residual_structure
from pmlray.law.validation.unseen import UnseenErrors

# Posterior samples, from which intervals come, unless told otherwise.
N_SAMPLES = 200
# Without a base loss, predictions above this share of the largest delta_loss count as at its cap.
AT_MOST = 0.98


def fit_law(
    data: LawData,
    form: Form | Literal["auto"] = "auto",
    *,
    forms: Sequence[Form] | None = None,
    n_bootstrap: int = N_SAMPLES,
    rng: np.random.Generator | None = None,
    targets: Sequence[Target] = (),
    options: FitOptions | None = None,
) -> LawSummary:
    """Fit the law and judge it at its targets.

    Args:
        data: points, as `read_law_data` or `law_data` give them.
        form: one form alone, or `auto` for all of `forms`, each weighted by its evidence.
        forms: by default those with a ceiling where each point's base loss is known, else `power`.
        n_bootstrap: number of posterior samples, from which intervals come.
        rng: source of the samples; by default one of seed 0.
        targets: points to predict, of the reference's ranks or of a placement's (`PlacedPoint`);
            status and headline refer to them, and without any to the largest rank, length and
            steps measured, of every placement.
        options: treatment of saturated and outlying points.

    Returns:
        The law with its 90% intervals, its predictions at the targets, its errors at points held
        out, and its status.

    Raises:
        FitError: no form can be fitted to these points.

    Example:
        >>> points = read_law_data("searches/tables/smollm2_phonebook.csv")
        >>> law = fit_law(points, targets=[DesignPoint(64, 1280, 160)])
        >>> (there,) = law.targets
        >>> law.fit.status.name, there.low < there.delta_loss < there.high
        ('CONVERGED', True)

    Source: arXiv 2605.30260 for the power form; `pmlray.law.fitting.posterior` for the inference.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    options = options or FitOptions()
    chosen = tuple(forms or default_forms(data)) if form == "auto" else (form,)
    average = average_laws(data, chosen, options)
    samples = average.sample(n_bootstrap, rng)
    predicted = predict_targets(data, samples, targets, rng)
    asked = predicted or predict_targets(data, samples, corners(data), rng)
    widths = [(t.where, t.relative_half_width) for t in asked]
    most = math.inf if average.base_loss_known else AT_MOST * average.base_loss
    beyond = [t.where for t in predicted if t.delta_loss > most]
    judgement = judge(data, average.best, widths, beyond)
    fit = replace(average.best, status=judgement.status, message=judgement.message)
    average = replace(average, fits=(fit, *average.fits[1:]))
    drawn = np.concatenate(
        [part.params for part in samples.parts if part.fit.law.form == fit.law.form]
    )
    residuals = residual_structure(data, fit)
    return LawSummary(
        fit=fit,
        judgement=judgement,
        weights=average.by_form,
        samples=drawn,
        intervals=param_intervals(fit.law, drawn, LEVEL),
        r2=r2(data, fit),
        mape=mape(data, fit),
        unseen=UnseenErrors(data, average, chosen, options),
        targets=predicted,
        residuals=residuals,
        checklist=checklist(data, average, len(samples.sigma), residuals),
        average=average,
        average_samples=samples,
    )
