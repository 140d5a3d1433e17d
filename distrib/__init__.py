"""Train image classifiers on clusters of CPUs; the same model, bit for bit, at any world size."""

__version__ = "0.1.0"
