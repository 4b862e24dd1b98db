"""`python -m expunge`, which is what `accelerate launch -m expunge` starts."""

from expunge.cli.app import app

if __name__ == "__main__":
    app(prog_name="expunge")
