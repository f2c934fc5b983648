"""Tasks beside each other: novelty, placement into experts, boundaries in a stream."""
