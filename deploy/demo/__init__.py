"""The demonstration: a real student, a reference teacher and the gateway on loopback."""
