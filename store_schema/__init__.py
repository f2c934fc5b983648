"""What lies on disk: layout, records, codecs, the atomic store. Knows neither torch nor the command line."""

import lazy_loader

# So that what needs only the errors starts without pydantic, HDF5 and safetensors. The names are in ``__init__.pyi``.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
