"""Papers about curvature."""
