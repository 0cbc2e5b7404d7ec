"""What an answer means for a session and what to do about it. Pure; standard library and ``wire`` only."""
