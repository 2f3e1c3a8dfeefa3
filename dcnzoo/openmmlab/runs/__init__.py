"""Read and check a config, then train, test or build its model."""
