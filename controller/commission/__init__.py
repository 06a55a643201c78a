"""Guided commissioning: one question at a time, resumable, ends in a signed report. `guide.run` is the way in."""
