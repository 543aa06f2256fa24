"""Scheduling of a pack's adapters: admission, records of a step, stopping, cost limits."""
