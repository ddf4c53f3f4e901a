"""Papers about kernel matrices."""
