"""Answers on their way to the client, as pure state machines: events in, bytes out."""
