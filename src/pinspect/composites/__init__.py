"""The pictures that the model sees: address grid, stacked composites, star images (stage composite)."""
