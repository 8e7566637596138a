"""What a model can be: a history of adapters, vectors, a system prompt, and how logits are made."""
