"""What imgen does, without HTTP, SQL or S3: prompts, catalogue, the life of a generation."""
