"""Evaluation of adapters: loss, recall, greedy decoding, the capacity control."""
