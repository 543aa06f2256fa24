"""Reports as files: the page of a search, the page of a comparison, and their tables."""
