"""AMVLM: text-guided semi-supervised segmentation of medical images. Research use only, not for diagnosis."""

__version__ = "0.1.0"
