"""Readers of records: formats of files, layouts of rows, and the queries and targets in them."""
