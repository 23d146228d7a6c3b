"""The decision: may the student answer? No HTTP, no database."""
