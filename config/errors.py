"""What may an operator set? This file answers: how a setting that is not allowed is told.

SettingsRejected stands alone; NameRejected and PatternRejected are in `config.patterns`.
"""


class SettingsRejected(Exception):
    """Settings that cannot be used.

    `problems` holds every problem found, each naming the key, the value (masked where it is
    secret), what is allowed and where it came from.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))
