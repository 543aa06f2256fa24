"""Validation of a fit: residuals, unseen points, intervals, the verdict."""
