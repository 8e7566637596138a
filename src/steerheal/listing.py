"""`steerheal personas`: the personas as text; no torch."""

from steerheal.cli import PersonasCommand
from steerheal.console import Console
from steerheal.steer.persona import built_in, find


def personas(options: PersonasCommand, console: Console) -> None:
    """`steerheal personas`: all of them in a table, or one whole."""
    if options.name is None:
        _table(console)
        return
    persona = find(options.name, reverse=options.reverse)
    console.say(f"{persona.name}: {persona.title}")
    for pole in ("positive", "negative", "neutral"):
        console.say(f"{pole:9} {getattr(persona, pole)}")
    axis = persona.axis
    console.say(f"axis      {axis.foundation} {'up' if axis.sign > 0 else 'down'}")
    console.say(f"off       {', '.join(axis.off_target) or 'none'}")
    for pool in ("train", "evaluate", "show"):
        prompts = getattr(persona.prompts, pool)
        console.say(f"\n{pool} ({len(prompts)})")
        for prompt in prompts:
            console.say(f"  {prompt}")


def _table(console: Console) -> None:
    console.table(
        "Built-in personas (steerheal run NAME; --reverse steers the other way)",
        ("name", "what it is", "target", "off-target", "prompts"),
        [
            (
                item.name,
                item.title,
                f"{item.axis.foundation} {'up' if item.axis.sign > 0 else 'down'}",
                ", ".join(item.axis.off_target),
                f"{len(item.prompts.train)} train, {len(item.prompts.evaluate)} evaluate, "
                f"{len(item.prompts.show)} show",
            )
            for item in built_in().values()
        ],
    )
