"""`python -m monitor` is `driftd`."""

from monitor.cli import main

main()
