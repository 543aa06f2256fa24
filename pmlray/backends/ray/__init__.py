"""Ray: the cluster, its jobs, the workers of Ray Train, the packs that Ray Tune hands out."""
