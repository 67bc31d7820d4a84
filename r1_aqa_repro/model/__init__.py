"""Models: loading, inputs, generation, shared computation."""
