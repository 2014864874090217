"""Vision-language models: families, loading, encoding, generation, and the LoRA adapter that a line trains."""
