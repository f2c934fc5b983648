"""Several processes of torchrun: how they start and end together, and what they sum."""
