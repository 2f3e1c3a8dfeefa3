"""A training, a test, or a model that is built: reads the config and runs it."""
