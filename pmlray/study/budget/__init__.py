"""Cost of runs, allowed and spent, and how runs become packs."""
