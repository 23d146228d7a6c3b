"""Reference pages; the tables in them are written by ``python -m deploy.docs``."""
