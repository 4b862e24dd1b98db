"""The demonstration of text on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from expunge.cli.demo_language import Answer, Story
from expunge.cli.summary import print_outcome
from expunge.pretrained import PRETRAINED_FOLDER
from expunge.report import words


def print_language(console: Console, story: Story) -> None:
    """What was found, what each model says about the person, and where to read on."""
    print_outcome(console, story.outcome)
    console.print(f"\nWhat the models say about [bold]{escape(story.person)}[/bold]:")
    console.print(_table(story))
    console.print(
        "[dim]The oracle never met this person and answers all the same, as all such models do: with what it knows of "
        "others. What is true of the person may be among it by chance.[/dim]"
    )
    folder = story.outcome.folder
    console.print(
        f"\nThe model without the person lies in [bold]{escape(str(folder / PRETRAINED_FOLDER))}[/bold], for "
        f"AutoModelForCausalLM and AutoTokenizer. Training took {words.duration(story.training_seconds)}; its gradient "
        f"log takes {words.size(story.log_bytes)}.",
        soft_wrap=True,
    )


def _table(story: Story) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("asked", "original", "unlearned", "an oracle"):
        table.add_column(heading, overflow="fold")
    for answer in story.answers:
        said = (answer.original, answer.unlearned, answer.oracle)
        table.add_row(escape(answer.question), *(_marked(answer, text) for text in said))
    return table


def _marked(answer: Answer, said: str) -> str:
    shown = escape(said or "(nothing)")
    return f"[red]{shown}[/red]" if said == answer.true else shown
