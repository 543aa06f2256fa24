"""Training many adapters on one frozen base: needs torch and transformers."""
