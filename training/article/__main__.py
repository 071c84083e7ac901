"""`python -m training.article`."""

import sys

from training.article.cli import main

sys.exit(main())
