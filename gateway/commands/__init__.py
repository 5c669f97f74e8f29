"""Groups of commands of the command line, one module each with a Typer app named `app`."""
