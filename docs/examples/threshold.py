"""A promptable segmenter in a few lines: what is brighter than the box's surroundings."""

import torch
import torch.nn.functional as F


class Threshold:
    """Bright pixels inside the box."""

    name = "threshold"
    input_size = 128
    precision = "fp32"

    def __init__(self, device, level=0.5):
        self.device = device
        self.level = level

    def prepare(self, image):
        """Slice uint8 (H, W) → (1, 128, 128) in 0…1."""
        grey = torch.from_numpy(image.copy()).float()[None, None] / 255
        size = (self.input_size, self.input_size)
        return F.interpolate(grey, size, mode="bilinear", antialias=True)[0].to(self.device)

    def encode(self, inputs):
        """(B, 1, 128, 128) → the same: there is nothing to encode."""
        return inputs

    def decode(self, embeddings, prompts):
        """Every image with every box: (B, O, 128, 128)."""
        at = (torch.arange(self.input_size, device=self.device) + 0.5) / self.input_size
        x0, y0, x1, y1 = prompts.boxes.to(self.device).T[..., None]  # each (O, 1)
        rows, columns = (at > y0) & (at < y1), (at > x0) & (at < x1)
        inside = rows[:, :, None] & columns[:, None, :]  # (O, 128, 128)
        return torch.where(inside, 20 * (embeddings - self.level), -20.0)


def make(device, level=0.5):
    return Threshold(device, level)
