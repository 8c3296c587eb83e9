"""Neurocoder: agents whose weights are programs in a memory.

The rooms, and the only direction in which imports run::

    runs ──► agents ──► policies
                   └──► envs

Importing this registers the environments ``neurocoder/…`` with Gymnasium. Nothing heavy is imported here, so that
``neurocoder --help`` answers at once.
"""

from neurocoder.registration import register_tasks

__version__ = "0.1.0"

register_tasks()
