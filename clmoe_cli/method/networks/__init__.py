"""Architectures: networks that compute with parameters they are given."""
