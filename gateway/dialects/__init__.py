"""Wire dialects: thin translators over the core, one file each."""
