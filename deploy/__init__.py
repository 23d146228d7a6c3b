"""What runs Understudy: demo, reference teacher, and later images, charts and dashboards."""
