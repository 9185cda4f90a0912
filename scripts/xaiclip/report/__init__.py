"""Tables and figures made from the metric files."""
