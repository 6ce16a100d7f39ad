"""HTTP: OpenAI's routes, errors, limits, streams and metrics. Knows no scheduling and no devices."""
