"""Neurocoder: agents whose weights are programs in a memory.

The rooms, and the only direction in which imports run::

    runs ──► agents ──► policies
                   └──► envs

Nothing heavy is imported here, so that ``neurocoder --help`` answers at once.
"""

__version__ = "0.1.0"
