"""What several test modules share. Whatever here mirrors the code under test is written anew, from the formats."""
