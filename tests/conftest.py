"""Its place puts tests/ on the import path, for what several test folders share."""
