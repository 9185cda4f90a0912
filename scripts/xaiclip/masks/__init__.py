"""Maps into masks."""
