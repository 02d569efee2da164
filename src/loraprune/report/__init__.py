"""What a run looks like: card, tables and page, drawn from the record alone."""
