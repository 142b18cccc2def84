"""Ray's affairs: clusters, resources, actors, lines to the driver."""
