"""Validated files of pmlray: searches, comparisons, cluster profiles."""

from pmlray.config.cluster_profile import ClusterProfile
from pmlray.config.load import load_search, load_spec
from pmlray.config.recipe import Recipe
from pmlray.config.search_spec import SearchSpec

__all__ = ["ClusterProfile", "Recipe", "SearchSpec", "load_search", "load_spec"]
