"""Where adapters sit in a base, what they begin with, and what they take."""
