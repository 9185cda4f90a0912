"""Promptable segmenters: one interface, MedSAM and its relatives, and the compact one."""

from xaiclip.lazy import defer

# of both, only networks and a resize are used here
defer("segment_anything", "torchvision")
