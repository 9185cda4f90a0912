"""XAI-CLIP: ROI-guided perturbation explanations of medical image segmentation."""

__version__ = "0.1.0"
