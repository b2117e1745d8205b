"""`python -m tether.language.pretraining`."""

import sys

from tether.language.pretraining.tiny_recipe import main

sys.exit(main())
