"""The featurizer as a member of a consumer group: the raw log in, rows to Redis, topics and tables out."""
