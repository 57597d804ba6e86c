"""The compressed field: its blob, its entropy coder, its evaluation, pictures of it. Only a GPU needs torch."""
