"""This machine and process: what training needs of them, and what results tell of them."""
