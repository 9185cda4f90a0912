"""Localization, fidelity, cost, statistics, and the schemas of the metric files.

Throughout, a value that cannot be had is NaN in memory and null in a file. It is never 0 or 1.
"""
