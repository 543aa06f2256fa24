"""Comparison of training methods: learning rates tuned alike, then runs in pairs."""
