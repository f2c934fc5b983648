"""One task's subnetwork: training, gradient scores, pruning, fine-tuning, freezing."""
