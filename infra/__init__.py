"""Command line, settings, embedded services and deployment files: the room that may import every other."""
