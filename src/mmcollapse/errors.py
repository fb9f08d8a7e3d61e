"""What can go wrong, in words meant for the person at the keyboard: the command line prints them without traceback."""


class MMCollapseError(Exception):
    """Base of every error that the project raises on purpose."""


class StoreFull(MMCollapseError):
    """No room left on the disk (or quota) of the store. Nothing finished is lost: make room and rerun."""


class Damaged(MMCollapseError):
    """Something in the store is missing, or is not what its checksum says."""


class ParentChanged(MMCollapseError):
    """A parent, made again, has another content digest: what was made from it is invalid. A rerun makes it anew."""


class TrainingDiverged(MMCollapseError):
    """A loss or a weight became NaN or infinite: the chain ends here, what was finished before stays."""
