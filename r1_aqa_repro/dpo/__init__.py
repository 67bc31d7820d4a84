"""Direct preference optimisation on text pairs, with relative preference optimisation among its losses."""
