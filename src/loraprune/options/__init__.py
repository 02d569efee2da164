"""Options as dataclass fields: declared once with help, range and choices, and flat keywords for nested options."""
