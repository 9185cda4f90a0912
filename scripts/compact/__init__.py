"""The factory of what the project ships: phantoms, and the compact models trained on them.

Not part of the library: nobody who explains a scan imports it.
"""
