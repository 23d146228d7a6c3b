"""What clients may ask: one module for each endpoint of the API."""
