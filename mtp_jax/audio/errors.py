"""What is raised for a recording that cannot be used."""


class AudioError(ValueError):
    """A recording that cannot be used; the message says in one sentence which, why and what to do.

    Whoever reads many recordings can catch it, note the message and go on with the next.
    """
