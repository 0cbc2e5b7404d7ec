"""What an answer means for a session: knowledge as rows, and the only reader of status codes. Pure."""
