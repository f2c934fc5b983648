"""The method: pure functions over tensors.

The rule of this package: torch only, no file, no print, no global state; randomness comes from a passed
``torch.Generator``. Parameters are ``dict[str, Tensor]`` keyed by name, never by position.
"""
