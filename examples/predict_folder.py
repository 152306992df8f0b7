"""Send a folder to a running service, and list what is not good.

    python examples/predict_folder.py FOLDER --url http://127.0.0.1:8000

Needs ``pip install 'moleflow[client]'``. The exit status is 1 if an image is not good or could not be judged.
"""

import argparse
import sys
from collections.abc import Sequence

from moleflow.client import Client


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time")
    options = parser.parse_args(arguments)
    judged, listed = 0, 0
    with Client(options.url) as client:
        for each in client.predict_folder(options.folder, concurrency=options.concurrency):
            judged += 1
            found = each.prediction
            if found is not None and found.verdict == "good":
                continue
            listed += 1
            product = found.task.name if found is not None and found.task is not None else "-"
            print(f"{each.path}: {each.error or found.verdict}  {product}")
    print(f"{judged} images, {listed} listed")
    return 1 if listed else 0


if __name__ == "__main__":
    sys.exit(main())
