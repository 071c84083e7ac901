"""Families of models: their configurations, one decoder, and its parts."""
