"""From a table's rows to the points that are trained. Importing it lets Hydra find the sweeper of tables."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).with_name("plugins")))

NO_POINT = 3  # the exit code for a selection that a table has no point of
