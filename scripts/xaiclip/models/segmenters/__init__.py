"""Promptable segmenters: one interface, MedSAM and its relatives, and the compact one."""
