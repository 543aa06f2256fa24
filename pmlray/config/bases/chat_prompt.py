"""The chat prompt of a query, in terms of the tokenizer's chat template."""

from __future__ import annotations

SYSTEM_PROMPT = "You are a helpful assistant."
# Some chat templates insert today's date by default, which would change the prompt every day.
FIXED_DATE = "26 Jul 2024"
