"""The HTTP service: reads a row from the online store by name and scores it with the champion."""
