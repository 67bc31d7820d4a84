"""What a training step costs in memory, FLOPs and seconds, counted on a model that has no memory of its own."""
