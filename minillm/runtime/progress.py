"""The progress bar of long work, on a terminal only; it disappears when the work is done."""

from functools import partial

from tqdm.auto import tqdm

progress = partial(tqdm, leave=False, disable=None, dynamic_ncols=True)
