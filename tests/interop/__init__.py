"""Real SDK servers, killed and restarted under real SDK clients, through the sidecar."""
