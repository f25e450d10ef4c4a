"""How a convenience request becomes a request to the API: one file for each family, pure."""
