"""MLflow as the mirror of a study: runs, metrics, reports, the load of nodes."""
