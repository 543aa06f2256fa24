"""One form fitted to points, and several weighed by their evidence."""
