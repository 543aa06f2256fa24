"""Ray: clusters, jobs, Ray Train workers, and packs scheduled by Ray Tune."""
