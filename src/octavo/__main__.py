"""Where the `octavo` command begins."""

import signal


def main() -> None:
    """Run the command line."""
    # While modules are imported Ctrl-C ends the process at once: an exception in their midst would become a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from octavo.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
