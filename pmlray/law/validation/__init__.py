"""Trust in a fit: residuals, unseen points, intervals, the verdict."""
