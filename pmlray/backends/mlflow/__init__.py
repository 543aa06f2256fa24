"""MLflow as the mirror of a study: runs, metrics, reports, node load."""
