"""Doing it: asyncio and aiohttp carry out what ``healing`` decides."""
