"""Passage of plain English, to measure an adapter's effect on the base's earlier abilities."""

from __future__ import annotations

# Written for pmlray, so that no base has been trained on it.
PROSE = """\
The ferry left the harbour a little after six, when the fog had thinned enough to show the first \
of the buoys. Most of the passengers stayed below, where it was warm and someone had put a kettle \
on, but an old man in a brown coat stood at the rail and counted the gulls that followed us. He \
told me that he had made the crossing every week for thirty years, first to sell cheese and later \
to visit his daughter, and that he had never once seen the island appear all at once. It came in \
parts, he said: a dark line, then a church, then the smoke of the kitchens, and only at the very \
end the people on the pier, waving at nobody in particular. By the time we had tied up he was \
already halfway down the gangway, with his hat in his hand."""
