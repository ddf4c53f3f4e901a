"""Papers about per-example gradients."""
