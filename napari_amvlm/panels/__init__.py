"""Panels show and signal; none decides."""
