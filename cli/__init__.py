"""What the scripts share at their edge: the console, arguments, files written whole or not at all."""
