"""One kernel or network facility per file, and no policy in it. Edges do not import each other."""
