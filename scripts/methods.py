"""Write docs/methods.md and docs/tables.md: `python scripts/methods.py`."""

import argparse

from melora_bench.grids import tables_page
from melora_bench.results import methods_page

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for page in (methods_page, tables_page):
        print(f"wrote {page.write_docs()}")
