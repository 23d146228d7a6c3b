"""Steps of the Postgres schema, oldest first."""
