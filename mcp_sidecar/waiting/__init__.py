"""Bounded waits for what is away or busy; knows neither HTTP nor MCP."""
