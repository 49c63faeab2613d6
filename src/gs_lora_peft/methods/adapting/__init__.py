"""Methods for a LoRA adapter: the papers' settings, plain LoRA, forgetting in depth, orthogonal projections."""
