"""Rows to figures and a report. Reads arrays and dicts; knows no Ray, torch or model."""
