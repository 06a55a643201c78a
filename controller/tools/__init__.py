"""Commissioning from the command line: find devices, read them, listen to a line, prove a profile. Nothing here runs beside control."""
