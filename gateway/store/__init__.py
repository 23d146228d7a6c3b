"""The one store: exchanges, attempts and draws. The only part of the gateway others import."""
