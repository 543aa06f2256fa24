"""Commands that train, decode or draw within the test's own process."""
