"""Processes that compute for others: launching them, watching over them, and talking to them. Not what they compute."""
