"""clmoe: continual learning in a persistent store of experts. Importing this package does not import torch."""


def __getattr__(name: str) -> str:
    """``__version__``, looked up when it is asked for: that takes as long as starting does."""
    if name == "__version__":
        from importlib.metadata import version

        return version("clmoe")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
