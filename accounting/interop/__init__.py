"""Bridges to other libraries' accountants. Nothing here is imported unless it is asked for."""
