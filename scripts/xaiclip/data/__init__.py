"""Data access and synthesis."""
