"""What the scripts share: the console, command-line arguments, files written whole or not at all."""
