"""Read, check and write configs, without building anything from them."""
