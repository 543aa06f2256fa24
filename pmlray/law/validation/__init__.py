"""How far a fit can be trusted: residuals, unseen points, intervals, the verdict."""
