"""A run folder's figures and page; reads records, never touches a model."""
