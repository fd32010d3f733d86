"""From a point, a config with its seeds, to the records of its runs."""
