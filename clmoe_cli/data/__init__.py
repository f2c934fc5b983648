"""Files to checked arrays: what people give, read without trusting it, as large as it may be."""

import lazy_loader

# ``inspect`` needs to know what a batch is, and reads none.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
