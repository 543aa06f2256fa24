"""The adapters of a pack that train, on which records, and for how many steps."""
