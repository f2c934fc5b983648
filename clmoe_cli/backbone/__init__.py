"""Frozen networks in front of the experts: what turns pictures into features."""
