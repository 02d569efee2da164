"""Steps that the recipes share: check, train, measure, record."""
