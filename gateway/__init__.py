"""The data plane: HTTP in, judged, HTTP out, captured."""
