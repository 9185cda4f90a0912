"""What several tests of own use."""

import numpy as np

ORGANS = ("liver", "spleen")


BOXES = {"liver": np.array([10.0, 20, 80, 90]), "spleen": np.array([60.0, 60, 130, 150])}
