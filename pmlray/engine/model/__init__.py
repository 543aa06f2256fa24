"""The frozen base model: loading, cached prefix activations, rows of tokens, the loss head."""
