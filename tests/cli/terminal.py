"""Running a command in this process, as the terminal would."""

from condiff.cli.main import main

# A network that trains in no time.
SMALL = ["--set", "network.width=16", "--set", "network.depth=1"]
TINY = [*SMALL, "--set", "network.heads=2", "--set", "training.batch=16"]


def run(capsys, *argv, code=0):
    """What a command printed; it has to end with the exit code."""
    assert main([str(a) for a in argv]) == code
    return capsys.readouterr()
