"""Per-example gradients, kernels and curvature in JAX."""
