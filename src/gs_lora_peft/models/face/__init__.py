"""The Face Transformer, a ViT that recognises people by the angle between embeddings."""
