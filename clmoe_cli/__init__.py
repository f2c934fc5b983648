"""clmoe: continual learning in a persistent store of experts. Importing this package does not import torch."""

from importlib.metadata import version

__version__ = version("clmoe")
