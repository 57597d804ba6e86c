"""Volume files <-> volumes: one file per format, its reader and its writer together."""
