"""Training of many adapters on one frozen base model; needs torch and transformers."""
