"""Grafana dashboards as code; ``python -m deploy.dashboards`` writes the JSON beside it."""
