"""Options as fields of dataclasses: declared once, with help, range and choices; flat keywords for nested ones."""
