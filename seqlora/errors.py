"""The one exception that means: the user can mend this."""


class SeqLoRAError(ValueError):
    """One sentence for the user: what was found, where, and what to do."""
