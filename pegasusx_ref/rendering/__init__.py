"""Number formatting, text tables, HTML templates and matplotlib helpers, shared by several subpackages."""
