"""``python -m lw_retinanet``, the command line."""

from lw_retinanet.cli.main import main

main()
