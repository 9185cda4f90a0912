"""What several tests of foreign code use."""

from __future__ import annotations

from test_backbone import TEXT, VISION

MODEL = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
