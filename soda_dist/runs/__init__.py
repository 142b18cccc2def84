"""A run's folder: the only owner of its names and layout."""
