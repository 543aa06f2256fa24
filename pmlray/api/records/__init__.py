"""Records as programs and command lines give them, and which of them a search has."""
