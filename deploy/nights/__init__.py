"""A simulated fortnight: traffic by day, distillation by night, and what goes wrong in between."""
