"""The `expunge` command: a job file in, an unlearned model and its evidence out."""
