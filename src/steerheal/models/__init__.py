"""A chat model and what is done to it: loading, templating, hooks, batches, sampling."""
