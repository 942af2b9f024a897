"""What the system said, where a storage library said it in other words."""

import os
import re
from pathlib import Path


def os_error(error: BaseException, path: Path) -> OSError | None:
    """The system's error at `path` behind TensorStore's `ValueError`; None where it is nothing of that.

    A full disk is RESOURCE_EXHAUSTED in its words, as is a lack of memory.
    """
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return None if code is None else OSError(int(code[1]), os.strerror(int(code[1])), str(path))
