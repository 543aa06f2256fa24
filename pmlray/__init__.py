"""pmlray: how much text a LoRA adapter can hold word for word, measured, fitted and used."""

__version__ = "0.1.0"
