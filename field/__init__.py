"""The compressed field: the blob, its entropy coder, its evaluation, pictures of it. No torch."""
