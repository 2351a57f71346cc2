"""What is deployed: images, units, charts, dashboards and alerts."""
