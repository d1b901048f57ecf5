"""Models: Hugging Face architectures on meta, and how their values come to be."""
