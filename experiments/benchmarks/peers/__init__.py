"""Other libraries doing the same jobs, each run by the Python of its own environment."""
