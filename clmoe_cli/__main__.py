"""``clmoe``, which is ``python -m clmoe_cli`` as well."""

import signal


def main() -> None:
    """Runs the command line; an interruption while it is imported is told of as one that comes later."""
    stopped: list[int] = []
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    from clmoe_cli.cli import app

    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app.main(stopped=bool(stopped))


if __name__ == "__main__":
    main()
