"""The nightly loop: turn captured exchanges into a better student, or say why not."""
