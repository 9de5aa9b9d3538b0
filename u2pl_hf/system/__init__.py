"""Processes, devices, number types and layouts; nothing here knows a run's arguments."""
