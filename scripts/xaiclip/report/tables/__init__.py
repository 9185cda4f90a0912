"""The study's tables: built as data, then laid out for reading.

A table has two forms. The tidy frame (CSV) holds one measure of one row per line and one value per
cell. The Markdown is for reading, and shows nothing that the frame does not hold. Any number of
cases gives a table: where a value or an interval cannot be had, its cell is empty, and what was
left out stands below.
"""
