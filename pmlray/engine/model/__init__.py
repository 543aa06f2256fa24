"""The frozen base model: its files, its prefix computed once, rows of tokens, the loss head."""
