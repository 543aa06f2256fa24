"""Whole searches on known laws, with runs that are made up."""
